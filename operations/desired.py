"""Finds the archives that a deployment names, and makes the desired state of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..archiver.variants import changed_files
from ..handlers.archive.mar_file import read_file, verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.archive.trusted_keys import TrustedKeys
from ..handlers.base.archive_layout import MANIFEST, RECORD, SPEC
from ..handlers.base.errors import ArchiveError, SpecError
from ..handlers.base.suggestions import nearest
from ..handlers.spec import parse_spec
from ..registry.address import SCHEME
from ..serving.settings import missing_archive
from .archive_source import ArchiveSource
from .deployment_file import Deployment, ModelSettings, VersionSettings
from .plan import GENERATED, Contents, DesiredModel, DesiredState, DesiredVersion

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class ArchiveFinder:
    """Finds archives for one server.

    Attributes:
        model_store: folder of the server's archives.
        folder: folder in which relative paths start.
        fetch: fetches the archive of an address of a registry, and returns its path.
        trusted: keys of which one must have signed each archive; None: any archive will do.
    """

    model_store: Path
    folder: Path
    fetch: Callable[[str], Path]
    trusted: TrustedKeys | None = None

    def path(self, archive: str) -> Path:
        """Return the path of an archive that a deployment names.

        Raises:
            ArchiveError: there is no such file.
            RegistryError: there is no such archive in the registry.
        """
        if archive.startswith(SCHEME):
            return self.fetch(archive)
        path = self.folder / archive if "/" in archive else self.model_store / archive
        if not path.exists():
            raise ArchiveError(
                f"{path}: no such archive; build it with `ts-ensemble build`"
                if "/" in archive
                else missing_archive(archive, self.model_store)
            )
        return path

    def version(self, settings: VersionSettings) -> tuple[str, DesiredVersion]:
        """Verify the archive of one version, and return the model's name and what is desired.

        Raises:
            ArchiveError: the archive is missing, was altered, is not signed by a trusted key, or
                its settings cannot be replaced.
            SpecError: the archive's spec has a mistake.
            RegistryError: the archive cannot be fetched.
        """
        path = self.path(settings.archive)
        record = verify_archive(path, trusted=self.trusted)
        changes = settings.changes()
        model = json.loads(read_file(path, MANIFEST))["model"]
        spec_text, digest = read_file(path, SPEC), record.digest
        if changes:
            self._check_changeable(path, changes)
            files = changed_files(path, changes)
            spec_text = files[SPEC]
            changed = ArchiveRecord.from_json(files[RECORD].decode(), source=str(path))
            digest = changed.digest
        serving = parse_spec(spec_text.decode(), source=f"{path}, {SPEC}").serving
        version = model["modelVersion"]
        file_name = path.name
        if changes or path.parent.resolve() != self.model_store.resolve():
            # The digest keeps apart archives of one version that differ.
            shown = digest.removeprefix("sha256:")[:_SHOWN_DIGITS]
            file_name = f"{model['modelName']}-{version}{GENERATED}{shown}.mar"
        return model["modelName"], DesiredVersion(
            version=version,
            contents=Contents(
                archive=file_name,
                digest=digest,
                batch_size=settings.batch_size or serving.batch_size,
                max_batch_delay_ms=settings.max_batch_delay_ms or serving.max_batch_delay_ms,
            ),
            own_workers=serving.workers,
            workers=settings.workers,
            source=ArchiveSource(path, version, changes),
        )

    def _check_changeable(self, path: Path, changes: Mapping[str, Any]) -> None:
        keys = ", ".join(key for values in changes.values() for key in values)
        if path.is_dir():
            raise ArchiveError(
                f"{path}: {keys} cannot be replaced in a folder: set them in its spec, and "
                "`ts-ensemble renew` it"
            )
        if self.trusted is not None:
            raise ArchiveError(
                f"{path}: this server loads only signed archives, and replacing {keys} would make "
                "another, unsigned archive of it: set them in the spec, build, and sign"
            )


def desired_state(deployment: Deployment, finder: ArchiveFinder, source: str) -> DesiredState:
    """Make the desired state of a deployment; nothing is written but what `fetch` writes.

    Args:
        deployment: what the server is to serve.
        finder: finds the archives.
        source: the deployment's file, for messages.

    Raises:
        SpecError: an archive holds another model or version than the deployment says.
        ArchiveError: an archive is missing, was altered, or is not signed by a trusted key.
        RegistryError: an archive cannot be fetched.
    """
    return DesiredState(
        {
            name: _desired_model(name, model, finder, f"{source}: models.{name}")
            for name, model in deployment.models.items()
        },
        deployment.remove_other_models,
    )


def _desired_model(
    name: str, settings: ModelSettings, finder: ArchiveFinder, source: str
) -> DesiredModel:
    found: dict[str, DesiredVersion] = {}
    for each in settings.versions:
        holds, version = finder.version(each)
        if holds != name:
            raise SpecError(
                f"{source}: {each.archive} holds the model '{holds}': list it under that name"
            )
        if version.version in found:
            raise SpecError(
                f"{source}: {each.archive} is a second archive of version {version.version}, and a "
                "server has each version once: raise the version in its spec"
            )
        found[version.version] = version
    default = settings.default or next(iter(found))
    if default not in found:
        raise SpecError(
            f"{source}.default: no listed archive has the version {default}"
            f"{nearest(default, list(found))}; they have {', '.join(found)}"
        )
    return DesiredModel(tuple(found.values()), default)
