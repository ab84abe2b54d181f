"""The verb ``versions``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import management_options, open_management, run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``versions``."""
    versions = subparsers.add_parser(
        "versions",
        help="show the versions of a model",
        description="GET /models/NAME/all.",
        parents=[run_folder_option(), management_options()],
    )
    versions.add_argument("name", metavar="NAME", help="name of the model")
    versions.set_defaults(run=_versions)


def _versions(arguments: argparse.Namespace) -> int:
    with open_management(arguments) as management:
        print_versions(management.versions(arguments.name))
    return 0
