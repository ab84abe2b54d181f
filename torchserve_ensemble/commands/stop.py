"""The verb ``stop``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..serving.server import Server
from .options import draining_options, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``stop``."""
    stop = subparsers.add_parser(
        "stop",
        help="stop the server that `serve` started",
        description="End TorchServe and its workers after they have answered all requests that "
        "have arrived. (torchserve --stop does not wait for them.)",
        parents=[run_folder_option(), draining_options()],
    )
    stop.set_defaults(run=_stop)


def _stop(arguments: argparse.Namespace) -> int:
    server = Server.attach(arguments.run_folder)
    if server is None:
        Server.remove_remains(arguments.run_folder)
        print(f"no server runs in {arguments.run_folder}")
        return 0
    server.stop(drain_timeout=arguments.drain_timeout, force=arguments.force)
    print(f"stopped {server.inference_address}")
    return 0
