"""The record of an archive: the SHA-256 of every file in it, and the versions that built it.

This module needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.archive_layout import RECORD
from ..base.errors import ArchiveError


@dataclass(frozen=True)
class ArchiveRecord:
    """The contents of an archive's file `RECORD`.

    Attributes:
        files: path of each other file in the archive -> its SHA-256 in hexadecimal.
        built_with: name of each package that the build used -> its version.
    """

    files: Mapping[str, str]
    built_with: Mapping[str, str]

    @property
    def digest(self) -> str:
        """``sha256:...`` over the paths and digests of all files and over `built_with`.

        Two archives of equal digest are equal byte for byte, their records included and their
        signatures excepted.
        """
        listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(self.files.items()))
        listing += json.dumps(dict(sorted(self.built_with.items())))
        return f"sha256:{sha256_of_bytes(listing.encode())}"

    def to_json(self) -> str:
        """Return the text of the file `RECORD`; equal records give equal texts."""
        content = {
            "digest": self.digest,
            "built_with": dict(sorted(self.built_with.items())),
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> ArchiveRecord:
        """Read the text of the file `RECORD`.

        Args:
            text: the file's text, exactly as `to_json` returned it.
            source: name of the archive, for messages.

        Raises:
            ArchiveError: the text is no record, its digest does not match its own list of files,
                or it is laid out in another way than `to_json` does.
        """
        try:
            content: Any = json.loads(text)
            record = cls(dict(content["files"]), dict(content["built_with"]))
            if record.digest != content["digest"] or record.to_json() != text:
                raise ArchiveError(
                    f"{source}: {RECORD} was changed after the build: its digest does not match "
                    "its list of files, or its text is laid out in another way than a build does; "
                    "build the archive again"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{source}: {RECORD} is damaged ({error!r}); build the archive again"
            ) from None
        return record


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes in memory, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
