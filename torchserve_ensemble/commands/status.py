"""The verb ``status``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.addresses import is_loopback
from .options import management_options, open_management, registry_option, run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION_SECONDS = 5.0
"""Time for a worker to tell its archive's digest; without it the state is shown all the same."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``status``."""
    status = subparsers.add_parser(
        "status",
        help="show the models, versions, workers and queues of a server",
        description="GET /models and GET /models/NAME/all. TorchServe also calls a worker READY "
        "whose process is stopped (kill -STOP). If the server runs on this machine, such a worker "
        "is shown as stopped.",
        parents=[run_folder_option(), management_options(), registry_option()],
    )
    status.add_argument(
        "--deployment",
        type=Path,
        metavar="FILE",
        help="compare the server with this deployment.yaml: one line for each version and worker",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    if arguments.deployment is not None:
        return _compare(arguments)
    with open_management(arguments) as management:
        versions = management.all_versions()
        if arguments.json:
            print(json.dumps([asdict(version) for version in versions], indent=2))
            return 0
        print(f"management  {management.address}")
        print_versions(versions, on_this_machine=is_loopback(management.address))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from ..operations.comparison import Finding, compare
    from ..operations.state import described_versions
    from .deployments import desired_by_file, server_of

    if arguments.management is not None:
        raise ServerError(
            "--deployment needs the server's archives, so it works only on the machine of a server "
            "that `serve` started: name its --run-folder instead of --management"
        )
    server = server_of(arguments.run_folder)
    path = arguments.deployment
    with (
        desired_by_file(arguments, path, server, keep=False) as desired,
        server.management(timeout=_DESCRIPTION_SECONDS) as management,
    ):
        rows = compare(desired, described_versions(management, must_answer=False))
    if arguments.json:
        print(json.dumps([row.to_json() for row in rows], indent=2))
        return 0
    for row in rows:
        print("\n".join(row.lines()))
    num_listed = sum(row.finding is not Finding.NOT_LISTED for row in rows)
    num_as_desired = sum(row.finding is Finding.AS_DESIRED for row in rows)
    print(f"{num_as_desired} of {num_listed} versions are as {path} describes")
    return 0
