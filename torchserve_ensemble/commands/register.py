"""The verb ``register``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from ..serving.changes import Changes
from ..serving.finding import running_server
from .options import management_options, open_management, run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``register``."""
    register = subparsers.add_parser(
        "register",
        help="register an archive and wait for its workers",
        description="RegisterModel of the gRPC management service (with --management: POST "
        "/models?url=ARCHIVE&synchronous=false), then GET /models/NAME/VERSION until its workers "
        "are READY. Workers that die while loading end it with their own traceback, and the "
        "version is unregistered again. The archive is checked first, as `verify` does, where the "
        "server was started by `serve`.",
        parents=[run_folder_option(), management_options()],
    )
    register.add_argument("archive", help="file name in the server's model store, or an URL")
    register.add_argument("--workers", type=int, default=1, help="if the archive does not say")
    register.set_defaults(run=_register)


def _register(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder) if arguments.management is None else None
    if server is not None:
        print_versions([server.register(arguments.archive, workers=arguments.workers)])
        return 0
    print(
        f"ts-ensemble: {arguments.archive} is not checked before TorchServe runs what is in it, "
        "since the server's model store is not known here: `ts-ensemble verify` checks the file",
        file=sys.stderr,
    )
    with open_management(arguments) as management:
        submit = partial(management.register, arguments.archive, workers=arguments.workers)
        print_versions([Changes(management).register(arguments.archive, submit)])
    return 0
