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
        help="change the number of workers of a model",
        description="PUT /models/NAME[/VERSION]?min_worker=N&max_worker=N, then GET until all are "
        "READY. Workers that are to end answer their requests first. If a new worker dies while it "
        "loads, the number is changed back.",
        parents=[run_folder_option(), management_options(), draining_options()],
    )
    scale.add_argument("name", metavar="NAME", help="name of the model")
    scale.add_argument(
        "workers",
        type=_number_of_workers,
        metavar="WORKERS",
        help="number of workers that the model shall have, from 0; each holds a full copy of the "
        "ensemble",
    )
    scale.add_argument(
        "--model-version", metavar="VERSION", help="version to change (default: the default one)"
    )
    scale.set_defaults(run=_scale)


def _number_of_workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"'{text}' is no number of workers; write the number that the model shall have, "
            "e.g. 2, or 0 to end all of them"
        )
    return int(text)


def _scale(arguments: argparse.Namespace) -> int:
    with open_changes(arguments) as changes:
        version = changes.scale(arguments.name, arguments.workers, arguments.model_version)
        print_versions([changes.management.with_default_mark(version)])
    return 0
