"""Manifests: which files make up an archive, and where their contents lie in a registry."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..handlers.archive.record import ArchiveRecord, sha256_of_bytes, sha256_of_file
from ..handlers.archive.verification import MAX_FILES
from ..handlers.base.archive_layout import MANIFEST

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

_CHECKED = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_CHECKED)
class Blob:
    """Contents of a file, which a registry stores once however many archives hold them.

    Attributes:
        sha256: SHA-256 of the contents.
        num_bytes: their size.
    """

    sha256: Sha256
    num_bytes: Annotated[int, Field(ge=0)]

    @property
    def key(self) -> str:
        """Path of the contents in a registry."""
        return f"blobs/{self.sha256[:2]}/{self.sha256[2:]}"


@dataclass(frozen=True, config=_CHECKED)
class Manifest:
    """Describes one archive completely, so that it can be put together again.

    Attributes:
        name: name of the model.
        version: version of the model.
        digest: the archive's digest, without ``sha256:``, which `verify` and every answer name.
        sha256: SHA-256 of the archive's file. It differs between a signed archive and an unsigned
            one of equal digest.
        num_bytes: size of the archive's file.
        files: path of every file in the archive, its record and signatures included -> contents.
        format: version of this description.
    """

    name: str
    version: str
    digest: Sha256
    sha256: Sha256
    num_bytes: Annotated[int, Field(gt=0)]
    files: Annotated[Mapping[str, Blob], Field(max_length=MAX_FILES)]
    format: Literal[1] = 1

    @property
    def key(self) -> str:
        """Path of the manifest in a registry."""
        return f"manifests/{self.name}/{self.digest}.{self.sha256}.json"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The distinct contents of the archive's files, small ones first."""
        return tuple(
            sorted(set(self.files.values()), key=lambda blob: (blob.num_bytes, blob.sha256))
        )

    @property
    def file_name(self) -> str:
        """Name of the archive's file, as `ts-ensemble build` writes it."""
        return f"{self.name}-{self.version}.mar"

    def to_json(self) -> bytes:
        """Return the manifest's text; equal manifests give equal texts."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


MANIFEST_ADAPTER = TypeAdapter(Manifest)


def describe_archive(path: Path, record: ArchiveRecord) -> Manifest:
    """Make the manifest of an archive that was verified.

    Args:
        path: a ``.mar`` file.
        record: the archive's record.
    """
    files = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Only the record itself, and signatures of it, are not listed in the record.
            sha256 = record.files.get(entry.filename) or sha256_of_bytes(archive.read(entry))
            files[entry.filename] = Blob(sha256, entry.file_size)
        model = json.loads(archive.read(MANIFEST))["model"]
    return Manifest(
        name=model["modelName"],
        version=model["modelVersion"],
        digest=record.digest.removeprefix("sha256:"),
        sha256=sha256_of_file(path),
        num_bytes=path.stat().st_size,
        files=files,
    )
