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
        help="check an archive before TorchServe gets it",
        description="Check every file of an archive against its record, that nothing else is in "
        "it, and that the file is byte for byte as a build writes it; print its digest.",
    )
    verify.add_argument("archive", type=Path, help="a .mar, or the folder of an extracted one")
    verify.add_argument(
        "--digest", help="that it must have, as its builder told: sha256:... in every answer"
    )
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from ..handlers.archive.mar_file import verify_archive

    record = verify_archive(arguments.archive)
    if arguments.digest not in (None, record.digest):
        raise ArchiveError(
            f"{arguments.archive} has the digest {record.digest}, not {arguments.digest}: it is "
            "another archive"
        )
    print(f"{arguments.archive}: {len(record.files)} files as they were built")
    print(record.digest)
    return 0
