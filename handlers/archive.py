"""What an archive says of itself: every file's digest, and one digest of them all.

TorchServe checks no digest (it extracts whatever it is given), so the worker does at load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArchiveError

RECORD = "archive.json"
"""The record's place in the archive. It lists every other file but TorchServe's manifest."""

ENSEMBLE = "ensemble"
"""The folder in the archive with the spec and the files that it names."""

SPEC = f"{ENSEMBLE}/ensemble.yaml"
"""The spec's place in the archive."""

ENTRY = "ensemble_entry.py"
"""The module that TorchServe loads."""

MODEL_CONFIG = "model-config.yaml"
"""TorchServe's settings of the model."""


@dataclass(frozen=True)
class ArchiveRecord:
    """Contents of `RECORD`.

    Attributes:
        files: path in the archive -> SHA-256 in hexadecimal.
        built_with: name -> version of what built the archive.
    """

    files: Mapping[str, str]
    built_with: Mapping[str, str]

    @property
    def digest(self) -> str:
        """``sha256:...`` over all files' paths and digests: equal contents, equal digest."""
        listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(self.files.items()))
        return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"

    def to_json(self) -> str:
        """The record as it stands in the archive."""
        content = {
            "digest": self.digest,
            "built_with": dict(sorted(self.built_with.items())),
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> ArchiveRecord:
        """Read a record.

        Raises:
            ArchiveError: it is not one, or its digest does not match its own list.
        """
        try:
            content: Any = json.loads(text)
            record = cls(dict(content["files"]), dict(content["built_with"]))
            if record.digest != content["digest"]:
                raise ArchiveError(
                    f"{source}: {RECORD} was changed after the build: its digest does not match "
                    "its list of files; build the archive again"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{source}: {RECORD} is damaged ({error!r}); build the archive again"
            ) from None
        return record


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_folder(folder: Path) -> ArchiveRecord:
    """Check an extracted archive against its own record.

    Args:
        folder: where TorchServe extracted the archive.

    Raises:
        ArchiveError: names each file that is missing or was changed.
    """
    record_path = folder / RECORD
    if not record_path.is_file():
        raise ArchiveError(
            f"{folder}: no {RECORD}; the archive was not built by `ts-ensemble build`"
        )
    # What is not UTF-8 is damaged, which reading it as JSON then tells.
    text = record_path.read_text(encoding="utf-8", errors="replace")
    record = ArchiveRecord.from_json(text, source=str(folder))
    wrong = [
        f"{path} is missing" if not (folder / path).is_file() else f"{path} was changed"
        for path, digest in record.files.items()
        if not (folder / path).is_file() or sha256(folder / path) != digest
    ]
    if wrong:
        raise ArchiveError(f"{folder}: the archive is damaged: {'; '.join(wrong)}; build it again")
    return record
