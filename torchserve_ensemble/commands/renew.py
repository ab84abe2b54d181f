"""The verb ``renew``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``renew``."""
    renew = subparsers.add_parser(
        "renew",
        help="accept the edits in an archive that `build --folder` made",
        description="Write the record of an archive that is a folder anew, after its spec, code or "
        "weights were edited, and check it. A worker that starts then runs the edited files; "
        "`ts-ensemble scale NAME 0` and `scale NAME 1` start another one.",
    )
    renew.add_argument("folder", type=Path, metavar="FOLDER", help="an archive that is a folder")
    renew.set_defaults(run=_renew)


def _renew(arguments: argparse.Namespace) -> int:
    from ..archiver.folder_archive import renew_record

    record = renew_record(arguments.folder)
    print(f"{arguments.folder}: {len(record.files)} files")
    print(record.digest)
    return 0
