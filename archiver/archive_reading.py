"""Opens a checked archive for reading: its spec, its record and single files."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.base.archive_layout import SPEC
from ..handlers.spec import EnsembleSpec
from ..handlers.spec.reading import parse_spec


@dataclass(frozen=True)
class Archive:
    """An archive whose files were compared with its record.

    Attributes:
        path: the ``.mar`` file, or the folder that one was extracted to.
        record: the SHA-256 of every file, and the versions that built it.
        spec: the ensemble.
    """

    path: Path
    record: ArchiveRecord
    spec: EnsembleSpec

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Check an archive and read its spec.

        Raises:
            ArchiveError: the archive is missing, was altered, damaged or foreign.
            SpecError: the archive's spec has a mistake.
        """
        record = verify_archive(path)
        text = _read(path, SPEC).decode()
        return cls(path, record, parse_spec(text, source=f"{path}, {SPEC}"))

    def read(self, name: str) -> bytes:
        """Return the bytes of one file, by its path in the archive."""
        return _read(self.path, name)

    def extract(self, name: str, target: Path) -> Path:
        """Copy one file out of the archive, block by block."""
        if self.path.is_dir():
            shutil.copyfile(self.path / name, target)
            return target
        with (
            zipfile.ZipFile(self.path) as archive,
            archive.open(name) as source,
            target.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1024**2)
        return target


def _read(path: Path, name: str) -> bytes:
    if path.is_dir():
        return (path / name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
