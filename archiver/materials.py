"""What is known of an archive's origin: its files, data sets, licences, packages and revision."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement

from ..handlers.spec import EnsembleSpec, Member
from .source_revision import SourceRevision

_PROFILE = "profile.json"
"""Name of the file that `ts-ensemble profile` writes."""


@dataclass(frozen=True)
class Materials:
    """What a bill of materials and a model card are written from.

    Attributes:
        spec: the ensemble.
        digests: path, from the spec's folder, of each file that the spec names -> its SHA-256.
        packages: name of each Python package of the build -> its version.
        revision: revision of the sources; None if they are in no git work tree.
        profile: contents of profile.json, if the spec lists that file of ``ts-ensemble profile``.
    """

    spec: EnsembleSpec
    digests: Mapping[str, str]
    packages: Mapping[str, str]
    revision: SourceRevision | None
    profile: Mapping[str, Any] | None = None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Data set -> metric -> value, without values that are no numbers."""
        finite = {
            data_set: {name: value for name, value in metrics.items() if math.isfinite(value)}
            for data_set, metrics in self.spec.provenance.metrics.items()
        }
        return {data_set: metrics for data_set, metrics in finite.items() if metrics}

    def licence_of(self, member: Member) -> str | None:
        """Return the licence of a member's weights."""
        return member.provenance.licence or self.spec.provenance.licence

    def data_sets_of(self, member: Member) -> tuple[str, ...]:
        """Return the data sets that a member was trained on, each as NAME or NAME@VERSION."""
        provenance = self.spec.provenance
        if member.provenance.data_sets or not provenance.training_data:
            return member.provenance.data_sets
        version = provenance.training_data_version
        return (provenance.training_data + (f"@{version}" if version else ""),)


def package_versions(names: Collection[str], requirements: str) -> dict[str, str]:
    """Return the versions of the packages that a build uses, sorted by name.

    Args:
        names: names of packages.
        requirements: text of a requirements.txt with further ones. Those that are not installed
            are left out.
    """
    needed = {*names, *(Requirement(line).name for line in requirements.splitlines())}
    versions = {}
    for name in sorted(needed):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def profile_of(spec: EnsembleSpec, folder: Path) -> Mapping[str, Any] | None:
    """Read the measurements of ``ts-ensemble profile`` among the extra files of a spec.

    Args:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.

    Returns:
        The contents of the file; None if the spec lists none, or it is from another program.
    """
    for file in spec.extra_files:
        if PurePosixPath(file).name == _PROFILE:
            try:
                content = json.loads((folder / file).read_bytes())
                _ = content["chosen"]["metrics"]["images_per_second"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            return dict(content)
    return None
