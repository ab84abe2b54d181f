"""The verb ``proxy``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.finding import running_server
from ..serving.flexserve_proxy import DEFAULT_LISTEN, flexserve_configuration
from .options import run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``proxy``."""
    proxy = subparsers.add_parser(
        "proxy",
        help="make a configuration of nginx for FlexServe's clients",
        description="Write a server block of nginx with FlexServe's routes POST /batch, POST "
        "/classify and GET /models, for a model of a server that `serve` started. FlexServe's "
        "clients then need no change but their base URL. The file contains the inference token.",
        parents=[run_folder_option()],
    )
    proxy.add_argument("name", metavar="NAME", help="name of the model")
    proxy.add_argument(
        "--listen",
        metavar="[ADDRESS:]PORT",
        default=DEFAULT_LISTEN,
        help="where nginx listens (default: %(default)s, as FlexServe)",
    )
    proxy.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write a file that only its owner can read (default: standard output)",
    )
    proxy.set_defaults(run=_proxy)


def _proxy(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder)
    if server is None:
        raise ServerError(
            "`ts-ensemble serve` did not start this server, so its tokens and addresses are not "
            "known: start it with `ts-ensemble serve`"
        )
    with server.management() as management:
        (version,) = management.describe(arguments.name, customized=True)
    try:
        members = [str(member["name"]) for member in (version.customized or {})["members"]]
    except (KeyError, TypeError):
        raise ServerError(
            f"{arguments.name} is no ensemble of this project: its handler describes no members"
        ) from None
    text = flexserve_configuration(
        model=arguments.name,
        version=version.version,
        members=members,
        address=server.inference_address,
        token=server.token("inference"),
        listen=arguments.listen,
    )
    if arguments.output is None:
        print(text, end="")
    else:
        _write_privately(arguments.output, text)
        print(f"{arguments.output} is written; to use it: nginx -t && nginx -s reload")
    return 0


def _write_privately(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with os.fdopen(
                os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as file:
                file.write(text)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ServerError(f"{path}: cannot be written: {error.strerror}") from error
