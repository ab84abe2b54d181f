"""Opens a checked archive for reading: its spec, its record and single files."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..handlers.archive.mar_file import read_file, spec_of, verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.spec import EnsembleSpec
from .packing import BLOCK_BYTES


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
        return cls(path, record, spec_of(path))

    def read(self, name: str) -> bytes:
        """Return the bytes of one file, by its path in the archive."""
        return read_file(self.path, name)

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
            shutil.copyfileobj(source, copy, BLOCK_BYTES)
        return target
