"""Options that several verbs share, and the clients that these options ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..registry.address import REGISTRY_VARIABLE
from ..serving.changes import Changes
from ..serving.client import InferenceClient
from ..serving.draining import DRAIN_SECONDS
from ..serving.finding import inference_client, management_client
from ..serving.management import ManagementClient
from ..serving.run_folder import DEFAULT_RUN_FOLDER, server_log
from ..serving.server import Server
from ..serving.tokens import TOKEN_VARIABLE
from ..serving.worker_log import WorkerLog

DATA_HELP = "images as FOLDER/LABEL/image, or a CSV file with the columns file and label"
"""Help of ``--data``, for labelled images."""

_INFERENCE_TIMEOUT_SECONDS = 60

_MANAGEMENT_TIMEOUT_SECONDS = 600
"""TorchServe answers a call that loads or ends workers only after they have loaded or ended."""


def run_folder_option() -> argparse.ArgumentParser:
    """Return a parent for a verb's parser, with the option ``--run-folder``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--run-folder",
        type=Path,
        metavar="FOLDER",
        default=DEFAULT_RUN_FOLDER,
        help=f"holds the server's logs, tokens and state (default: {DEFAULT_RUN_FOLDER})",
    )
    return parent


def registry_option() -> argparse.ArgumentParser:
    """Return a parent for a verb's parser, with the option ``--registry``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--registry",
        metavar="URL",
        help="folder or URL (s3://, gs://, file://) of the registry that registry://NAME:TAG is "
        f"looked up in (default: the environment variable {REGISTRY_VARIABLE})",
    )
    return parent


def management_options(
    timeout: int = _MANAGEMENT_TIMEOUT_SECONDS,
) -> argparse.ArgumentParser:
    """Return a parent for a verb's parser, with the options of a client of the management API.

    Args:
        timeout: default of ``--timeout``, in seconds.
    """
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--management",
        metavar="ADDRESS",
        help="management address of a server that `serve` did not start",
    )
    add_token_options(parent, "management")
    add_answer_timeout(parent, timeout, "each call of the management API")
    return parent


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a client of the inference API, which `open_inference` reads."""
    parser.add_argument(
        "--run-folder",
        type=Path,
        metavar="FOLDER",
        help=f"run folder of the server that `serve` started (default: {DEFAULT_RUN_FOLDER})",
    )
    parser.add_argument(
        "--address", help="inference address of a server that `serve` did not start"
    )
    add_token_options(parser, "inference")
    add_answer_timeout(
        parser, _INFERENCE_TIMEOUT_SECONDS, "each request, further attempts included"
    )


def add_answer_timeout(parser: argparse.ArgumentParser, default: int, subject: str) -> None:
    """Add ``--timeout``, the seconds that a server has for an answer.

    Args:
        parser: parser of a verb.
        default: seconds if the option is not given.
        subject: what is answered, for the help.
    """
    parser.add_argument(
        "--timeout",
        dest="answer_timeout",
        type=float,
        default=default,
        metavar="SECONDS",
        help=f"longest wait for the answer to {subject} (default: %(default)s)",
    )


def add_token_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add ``--token`` and ``--token-file``, for a server that `serve` did not start.

    Args:
        parser: parser of a verb.
        kind: kind of token that the verb needs, ``management`` or ``inference``.
    """
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        help=f"{kind} token of that server; `ps` shows arguments to every user of this machine",
    )
    token.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the {kind} token of that server, or the server's key_file.json "
        f"(default: the token in the environment variable {TOKEN_VARIABLE})",
    )


def draining_options() -> argparse.ArgumentParser:
    """Return a parent for a verb's parser, with the options about requests that are computed."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--drain-timeout",
        type=float,
        default=DRAIN_SECONDS,
        metavar="SECONDS",
        help="how long workers may finish requests before they are ended (default: %(default)g)",
    )
    parent.add_argument(
        "--force",
        action="store_true",
        help="after that time end workers that still compute, which loses their requests; without "
        "this option nothing is changed then",
    )
    return parent


def open_management(arguments: argparse.Namespace) -> ManagementClient:
    """Open a client of the management API that `management_options` name."""
    return management_client(
        run_folder=arguments.run_folder,
        address=arguments.management,
        token=arguments.token,
        token_file=arguments.token_file,
        timeout=arguments.answer_timeout,
    )


def open_inference(
    arguments: argparse.Namespace, *, transport: Literal["rest", "grpc"] = "rest"
) -> InferenceClient:
    """Open a client of the inference API that `add_inference_options` name.

    Args:
        arguments: values of the options.
        transport: protocol of the requests.
    """
    return inference_client(
        run_folder=arguments.run_folder,
        address=arguments.address,
        token=arguments.token,
        token_file=arguments.token_file,
        transport=transport,
        timeout=arguments.answer_timeout,
    )


@contextmanager
def open_changes(arguments: argparse.Namespace) -> Iterator[Changes]:
    """Open what scales, switches and unregisters versions.

    It reads tracebacks of dead workers from the log of a server that `serve` started here.
    """
    server = Server.attach(arguments.run_folder) if arguments.management is None else None
    with open_management(arguments) as management:
        yield Changes(
            management,
            None if server is None else WorkerLog(server_log(arguments.run_folder)),
            getattr(arguments, "drain_timeout", DRAIN_SECONDS),
            arguments.force,
        )
