"""The verb ``set-default``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import management_options, open_changes, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``set-default``."""
    default = subparsers.add_parser(
        "set-default",
        help="choose the version that answers requests which name no version",
        description="PUT /models/NAME/VERSION/set-default, if a worker of that version is READY.",
        parents=[run_folder_option(), management_options()],
    )
    default.add_argument("name", metavar="NAME", help="name of the model")
    default.add_argument(
        "--force",
        action="store_true",
        help="choose the version even if none of its workers is READY",
    )
    default.add_argument(
        "model_version", metavar="VERSION", help="version that becomes the default one"
    )
    default.set_defaults(run=_set_default)


def _set_default(arguments: argparse.Namespace) -> int:
    with open_changes(arguments) as changes:
        print(changes.set_default(arguments.name, arguments.model_version))
    return 0
