"""The verb ``scale``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import draining_options, management_options, open_changes, run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``scale``."""
    scale = subparsers.add_parser(
        "scale",
        help="change the number of workers",
        description="PUT /models/NAME[/VERSION]?min_worker=N&max_worker=N, then GET until they are "
        "READY. "
        "Workers that are to end answer first what they compute; a new one that dies takes the "
        "change back.",
        parents=[run_folder_option(), management_options(), draining_options()],
    )
    scale.add_argument("name", metavar="NAME")
    scale.add_argument("workers", type=int, help="each holds a full copy of the ensemble")
    scale.add_argument("--model-version", help="default: the default version")
    scale.set_defaults(run=_scale)


def _scale(arguments: argparse.Namespace) -> int:
    with open_changes(arguments) as changes:
        version = changes.scale(arguments.name, arguments.workers, arguments.model_version)
    print_versions([version])
    return 0
