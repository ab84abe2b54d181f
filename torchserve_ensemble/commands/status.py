"""The verb ``status``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..serving.addresses import is_loopback
from .options import management_options, open_management, run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``status``."""
    status = subparsers.add_parser(
        "status",
        help="show the models, versions, workers and queues of a server",
        description="GET /models and GET /models/NAME/all. TorchServe also calls a worker READY "
        "whose process is stopped (kill -STOP). If the server runs on this machine, such a worker "
        "is shown as stopped.",
        parents=[run_folder_option(), management_options()],
    )
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    with open_management(arguments) as management:
        print(f"management  {management.address}")
        print_versions(management.all_versions(), on_this_machine=is_loopback(management.address))
    return 0
