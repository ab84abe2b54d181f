"""The verb ``token``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.finding import plain_token, running_server
from .options import run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``token``."""
    token = subparsers.add_parser(
        "token",
        help="print a valid token of the running server, for other clients",
        description="Read the server's key_file.json, and renew an expired token with GET "
        "/token?type=KIND. Do not leave the token on a screen or in a log. Use it as in curl -H "
        '"Authorization: Bearer $(ts-ensemble token inference)".',
        parents=[run_folder_option()],
    )
    token.add_argument(
        "kind", choices=["inference", "management"], help="the API that the token is for"
    )
    token.set_defaults(run=_token)


def _token(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder)
    token = plain_token(arguments.kind) if server is None else server.token(arguments.kind)
    if token is None:
        raise ServerError("this server asks for no token (disable_token_authorization=true)")
    print(token)
    return 0
