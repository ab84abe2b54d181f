"""The verb ``rollout``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.finding import running_server
from ..serving.run_folder import DEFAULT_RUN_FOLDER
from ..serving.server import Server
from .completion import complete_archives
from .options import draining_options, registry_option, run_folder_option
from .printing import reported_work
from .pulled import local_archive

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``rollout``."""
    rollout = subparsers.add_parser(
        "rollout",
        help="replace the served version by another archive, and return to it if anything fails",
        description="Verify the archive, estimate the memory, RegisterModel of the gRPC management "
        "service, wait until its workers are READY, repeat its self-test, compare it with the old "
        "version, PUT /models/NAME/VERSION/set-default, drain the old version, and DELETE it. If a "
        "step fails, the old version is the default one again and the new one is removed. If the "
        "verb is killed, run it again: it sees at the server what is done. It runs on the machine "
        "of a server that `serve` started.",
        parents=[run_folder_option(), draining_options(), registry_option()],
    )
    rollout.add_argument("name", metavar="NAME", help="name of the model")
    complete_archives(
        rollout.add_argument(
            "archive",
            metavar="ARCHIVE",
            help="file name in the server's model store, or registry://NAME:TAG, which is fetched "
            "into it",
        )
    )
    rollout.add_argument(
        "--strategy",
        choices=["at-once", "blue-green"],
        default="at-once",
        help="at-once switches when all checks have passed; blue-green leaves the new version "
        "ready beside the old one until --promote or --abort (default: %(default)s)",
    )
    waiting = rollout.add_mutually_exclusive_group()
    waiting.add_argument(
        "--promote",
        action="store_true",
        help="switch to a version that waits; it is checked once more",
    )
    waiting.add_argument(
        "--abort", action="store_true", help="remove a version that waits, once it is drained"
    )
    rollout.add_argument(
        "--smoke",
        type=Path,
        metavar="FOLDER",
        help="images that both versions are compared on (default: the archive's own probes)",
    )
    rollout.add_argument(
        "--min-agreement",
        type=_share,
        metavar="SHARE",
        help="smallest share of the images, from 0 to 1, that both versions must decide alike "
        "(default: no bound, the share is printed)",
    )
    rollout.add_argument(
        "--max-slowdown",
        type=float,
        metavar="RATIO",
        help="largest ratio of the new version's median latency to the old one's (default: no "
        "bound, both are printed)",
    )
    rollout.add_argument(
        "--keep-old",
        action="store_true",
        help="leave the old version registered with its workers, so that `rollback` needs no "
        "loading",
    )
    add_memory_option(rollout)
    rollout.set_defaults(run=_rollout)


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--ignore-memory``, for verbs that start workers beside those that serve."""
    parser.add_argument(
        "--ignore-memory",
        action="store_true",
        help="go on although there seems to be too little memory for both versions",
    )


def local_server(run_folder: Path) -> Server:
    """Find the server of a run folder, whose model store and workers must be at hand.

    Raises:
        ServerError: no server runs there that `serve` started.
    """
    server = running_server(run_folder)
    if server is None:
        raise ServerError(
            f"the server of this folder was not started by `ts-ensemble serve` in "
            f"{DEFAULT_RUN_FOLDER}, so that its model store and its workers cannot be found: use "
            "`register`, `set-default` and `unregister`"
        )
    return server


def _rollout(arguments: argparse.Namespace) -> int:
    from ..serving.image_sources import find, read
    from ..serving.rollout import Bounds, Rollout, RolloutSettings, Strategy

    server = local_server(arguments.run_folder)
    images = [] if arguments.smoke is None else list(read(find([str(arguments.smoke)])))
    archive = local_archive(arguments.archive, server.model_store, arguments.registry)
    with reported_work(f"rolling out {archive}") as report:
        rollout = Rollout(
            server,
            arguments.name,
            RolloutSettings(
                bounds=Bounds(arguments.min_agreement, arguments.max_slowdown),
                images=images,
                keep_old=arguments.keep_old,
                ignore_memory=arguments.ignore_memory,
                drain_timeout=arguments.drain_timeout,
                force=arguments.force,
                report=report,
            ),
        )
        if arguments.abort:
            rollout.abort(archive)
        else:
            strategy = Strategy(arguments.strategy)
            rollout.roll_out(archive, strategy, promote=arguments.promote)
    return 0


def _share(text: str) -> float:
    """Read the value of ``--min-agreement``."""
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share
