"""The verb ``verify``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ArchiveError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``verify``."""
    verify = subparsers.add_parser(
        "verify",
        help="check that an archive is what `build` wrote",
        description="Compare every file of an archive with the SHA-256 in the archive's record. "
        "Check that it has no other files, and that it is byte for byte what a build writes. Print "
        "the archive's digest.",
    )
    verify.add_argument(
        "archive",
        type=Path,
        metavar="ARCHIVE",
        help="a .mar file, or the folder that one was extracted to",
    )
    verify.add_argument(
        "--digest",
        metavar="sha256:...",
        help="the digest that the archive's builder published; another digest is an error",
    )
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from ..handlers.archive.mar_file import verify_archive

    record = verify_archive(arguments.archive)
    if arguments.digest not in (None, record.digest):
        raise ArchiveError(
            f"{arguments.archive} has the digest {record.digest}, not {arguments.digest}: it is "
            "not the archive that its builder published"
        )
    print(f"{arguments.archive}: all {len(record.files)} files are as they were built")
    print(record.digest)
    return 0
