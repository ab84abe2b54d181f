"""The verb ``rollback``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import draining_options, run_folder_option
from .printing import reported_work
from .rollout import add_memory_option, local_server

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``rollback``."""
    rollback = subparsers.add_parser(
        "rollback",
        help="return to the version before the one that serves",
        description="PUT /models/NAME/VERSION/set-default for the earlier version, and DELETE the "
        "one that serves now, once it is drained. If the earlier version is no longer registered, "
        "its archive NAME-VERSION.mar of the model store is verified and registered first, as "
        "`rollout` does. Both versions are not compared.",
        parents=[run_folder_option(), draining_options()],
    )
    rollback.add_argument("name", metavar="NAME", help="name of the model")
    rollback.add_argument(
        "model_version",
        metavar="VERSION",
        nargs="?",
        help="version to return to (default: the highest one below the version that serves, among "
        "the registered ones, or else in the model store)",
    )
    add_memory_option(rollback)
    rollback.set_defaults(run=_rollback)


def _rollback(arguments: argparse.Namespace) -> int:
    from ..serving.rollout import Rollout, RolloutSettings

    server = local_server(arguments.run_folder)
    with reported_work(f"rolling back {arguments.name}") as report:
        settings = RolloutSettings(
            ignore_memory=arguments.ignore_memory,
            drain_timeout=arguments.drain_timeout,
            force=arguments.force,
            report=report,
        )
        Rollout(server, arguments.name, settings).roll_back(arguments.model_version)
    return 0
