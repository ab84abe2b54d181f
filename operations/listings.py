"""Lists the archives in a folder or a registry; damaged ones are reported once and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..handlers.archive.mar_file import read_file, verify_archive
from ..handlers.archive.trusted_keys import TrustedKeys
from ..handlers.base.archive_layout import MANIFEST
from ..handlers.base.errors import EnsembleError
from ..registry.address import SCHEME, Address
from ..registry.registry import Registry
from .plan import GENERATED

Report = Callable[[str], object]


@dataclass(frozen=True)
class ListedArchive:
    """An archive that may be served.

    Attributes:
        name: name of the model.
        version: its version.
        archive: how a deployment names the archive.
        key: differs for archives of different contents.
    """

    name: str
    version: str
    archive: str
    key: str

    @property
    def order(self) -> tuple[int, ...]:
        """The version as numbers: 1.10 is newer than 1.9."""
        return tuple(int(part) for part in self.version.split("."))


class Listing(Protocol):
    """Lists archives again and again."""

    def poll(self) -> list[ListedArchive]:
        """Return the archives that there are now."""
        ...


def newest(
    archives: Sequence[ListedArchive], latest: int, versions: Sequence[str] = ()
) -> Mapping[str, list[ListedArchive]]:
    """Choose archives of each model, the newest version first.

    Args:
        archives: what there is.
        latest: number of versions of each model to choose, if `versions` is empty.
        versions: the versions to choose.
    """
    chosen: dict[str, list[ListedArchive]] = {}
    for each in sorted(archives, key=lambda each: (each.order, each.key), reverse=True):
        model = chosen.setdefault(each.name, [])
        wanted = each.version in versions if versions else len(model) < latest
        if wanted and all(other.version != each.version for other in model):
            model.append(each)
    return {name: model for name, model in chosen.items() if model}


@dataclass
class FolderListing:
    """Lists the ``.mar`` files in a folder, and verifies each of them once.

    A file that is moved into the folder is complete at once. One that is being copied fails its
    verification; it is judged again until it has not changed between two polls, and only then it is
    reported as bad.

    Attributes:
        folder: the folder.
        trusted: keys of which one must have signed each archive; None: any archive will do.
        report: called once with each file that is left out, and why.
    """

    folder: Path
    trusted: TrustedKeys | None
    report: Report
    _good: dict[str, ListedArchive] = field(default_factory=dict)
    _bad: set[str] = field(default_factory=set)
    _changing: set[str] = field(default_factory=set)

    def poll(self) -> list[ListedArchive]:
        """Return the complete archives that are in the folder now."""
        keys = {}
        for path in sorted(self.folder.glob("*.mar")):
            if path.name.startswith(".") or GENERATED in path.name:
                continue
            try:
                status = path.stat()
            except OSError:
                # It was removed just now.
                continue
            key = f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
            keys[key] = path
            if key not in self._good and key not in self._bad:
                self._judge(key, path)
        self._changing &= set(keys)
        self._good = {key: each for key, each in self._good.items() if key in keys}
        return list(self._good.values())

    def _judge(self, key: str, path: Path) -> None:
        try:
            verify_archive(path, trusted=self.trusted)
            model = json.loads(read_file(path, MANIFEST))["model"]
        except EnsembleError as error:
            if key in self._changing:
                self._bad.add(key)
                self.report(f"skipped: {error.message}")
            self._changing.add(key)
        else:
            archive = str(path.resolve())
            self._good[key] = ListedArchive(model["modelName"], model["modelVersion"], archive, key)


@dataclass(frozen=True)
class RegistryListing:
    """Lists the archives to which a registry's tags point.

    Attributes:
        registry: the registry.
        address: a model, or one tag of it.
    """

    registry: Registry
    address: Address

    def poll(self) -> list[ListedArchive]:
        """Return the archives that the tags point to now.

        Raises:
            RegistryError: the registry cannot be read, or a manifest in it is damaged.
        """
        if self.address.tag is not None or self.address.digest is not None:
            manifests = [self.registry.find(self.address)]
        else:
            manifests = [tag.manifest for tag in self.registry.tags(self.address.name)]
        return [
            ListedArchive(
                each.name, each.version, f"{SCHEME}{each.name}@sha256:{each.sha256}", each.sha256
            )
            for each in manifests
        ]
