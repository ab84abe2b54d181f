"""The verb ``unregister``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import draining_options, management_options, open_changes, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``unregister``."""
    unregister = subparsers.add_parser(
        "unregister",
        help="remove a version of a model, and its workers",
        description="DELETE /models/NAME[/VERSION], after the version has answered all requests "
        "that have arrived.",
        parents=[run_folder_option(), management_options(), draining_options()],
    )
    unregister.add_argument("name", metavar="NAME", help="name of the model")
    unregister.add_argument(
        "model_version",
        metavar="VERSION",
        nargs="?",
        help="version to remove (default: the default one, if it is the only one)",
    )
    unregister.set_defaults(run=_unregister)


def _unregister(arguments: argparse.Namespace) -> int:
    with open_changes(arguments) as changes:
        print(changes.unregister(arguments.name, arguments.model_version))
    return 0
