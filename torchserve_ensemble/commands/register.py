"""The verb ``register``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from ..serving.changes import Changes
from ..serving.finding import running_server
from .completion import complete_archives
from .options import management_options, open_management, registry_option, run_folder_option
from .printing import print_versions
from .pulled import local_archive, refuse_registry_address

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``register``."""
    register = subparsers.add_parser(
        "register",
        help="register an archive with a running server, and wait for its workers",
        description="RegisterModel of the gRPC management service (with --management: POST "
        "/models?url=ARCHIVE&synchronous=false), then GET /models/NAME/VERSION until its workers "
        "are READY. If a worker dies while it loads, its own traceback is printed and the version "
        "is unregistered again. If `serve` started the server, the archive is checked first, as "
        "`verify` does.",
        parents=[run_folder_option(), management_options(), registry_option()],
    )
    complete_archives(
        register.add_argument(
            "archive",
            metavar="ARCHIVE",
            help="file name in the server's model store; registry://NAME:TAG, which is fetched "
            "into it; or a URL that the server may load",
        )
    )
    register.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of workers, for an archive that does not say it itself (default: %(default)s)",
    )
    register.set_defaults(run=_register)


def _register(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder) if arguments.management is None else None
    if server is not None:
        archive = local_archive(arguments.archive, server.model_store, arguments.registry)
        version = server.register(
            archive, workers=arguments.workers, timeout=arguments.answer_timeout
        )
        with server.management() as management:
            print_versions([management.with_default_mark(version)])
        return 0
    refuse_registry_address(arguments.archive)
    print(
        f"ts-ensemble: {arguments.archive} is not checked before TorchServe runs its code, since "
        "only a server that `serve` started here tells where its model store is; "
        "`ts-ensemble verify` checks the file",
        file=sys.stderr,
    )
    with open_management(arguments) as management:
        submit = partial(management.register, arguments.archive, workers=arguments.workers)
        version = Changes(management).register(arguments.archive, submit)
        print_versions([management.with_default_mark(version)])
    return 0
