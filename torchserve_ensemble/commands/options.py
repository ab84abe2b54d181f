"""Options that several verbs share, and what they open."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..serving.changes import Changes
from ..serving.draining import DRAIN_SECONDS
from ..serving.finding import management_client
from ..serving.management import ManagementClient
from ..serving.run_folder import DEFAULT_RUN_FOLDER, server_log
from ..serving.server import Server
from ..serving.tokens import TOKEN_VARIABLE
from ..serving.worker_log import WorkerLog

DATA_HELP = "FOLDER/LABEL/image, or a CSV file with the columns file and label"
"""What ``--data`` takes."""


def run_folder_option() -> argparse.ArgumentParser:
    """The option ``--run-folder``, as a parent of a verb's parser."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--run-folder",
        type=Path,
        default=DEFAULT_RUN_FOLDER,
        help=f"the server's logs, tokens and state (default: {DEFAULT_RUN_FOLDER})",
    )
    return parent


def management_options() -> argparse.ArgumentParser:
    """Where the management API is, and its token, as a parent of a verb's parser."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--management", help="address of a server that `serve` did not start")
    add_token_options(parent, "management")
    return parent


def add_token_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add ``--token`` and ``--token-file``, for a server that `serve` did not start.

    Args:
        parser: of a verb.
        kind: the token that the verb needs, ``management`` or ``inference``.
    """
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token", help=f"its {kind} token; `ps` shows arguments to everybody on this machine"
    )
    token.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"holds its {kind} token, or is its key_file.json "
        f"(default: the environment variable {TOKEN_VARIABLE})",
    )


def draining_options() -> argparse.ArgumentParser:
    """How long to wait for requests that are being computed, as a parent of a verb's parser."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--drain-timeout",
        type=float,
        default=DRAIN_SECONDS,
        metavar="SECONDS",
        help="to wait for requests that workers compute (default: %(default)g)",
    )
    parent.add_argument(
        "--force", action="store_true", help="then end them all the same, losing these requests"
    )
    return parent


def open_management(arguments: argparse.Namespace) -> ManagementClient:
    """A client of the management API that `management_options` name."""
    return management_client(
        run_folder=arguments.run_folder,
        address=arguments.management,
        token=arguments.token,
        token_file=arguments.token_file,
        timeout=600,
    )


@contextmanager
def open_changes(arguments: argparse.Namespace) -> Iterator[Changes]:
    """What scales, switches and unregisters versions, with the server's log where it is at hand."""
    server = Server.attach(arguments.run_folder) if arguments.management is None else None
    with open_management(arguments) as management:
        yield Changes(
            management,
            None if server is None else WorkerLog(server_log(arguments.run_folder)),
            getattr(arguments, "drain_timeout", DRAIN_SECONDS),
            arguments.force,
        )
