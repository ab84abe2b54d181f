"""The verb ``describe``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .options import management_options, open_management, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``describe``."""
    describe = subparsers.add_parser(
        "describe",
        help="members, labels and policies of a model",
        description="GET /models/NAME?customized=true.",
        parents=[run_folder_option(), management_options()],
    )
    describe.add_argument("name", metavar="NAME")
    describe.set_defaults(run=_describe)


def _describe(arguments: argparse.Namespace) -> int:
    with open_management(arguments) as management:
        (version,) = management.describe(arguments.name, customized=True)
    print(json.dumps(version.customized, indent=2, ensure_ascii=False))
    return 0
