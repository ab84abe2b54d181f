"""Finds the server that a verb talks to, and makes a client for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ..handlers.base.errors import ServerError
from .client import InferenceClient
from .management import ManagementClient
from .properties_file import read_properties
from .run_folder import CONFIG_FILE, DEFAULT_RUN_FOLDER, KEY_FILE, has_state
from .server import Server
from .sessions import is_this_machine
from .settings import DEFAULTS, effective
from .tokens import given_token

# A plain `torchserve --start` uses these files of the current folder.
_PLAIN_KEY_FILE = Path(KEY_FILE)
_PLAIN_CONFIG = Path(CONFIG_FILE)


def running_server(run_folder: Path) -> Server | None:
    """Find the running server of a run folder; another server is never used silently.

    Args:
        run_folder: the object `DEFAULT_RUN_FOLDER` itself means that the user named no run folder.

    Returns:
        The server. None means that a plain ``torchserve --start`` in the current folder is to be
        used: no run folder was named, `serve` left nothing behind, and TorchServe wrote its
        key_file.json into the current folder.

    Raises:
        ServerError: no server runs there; the message says whether one has died there.
    """
    server = Server.attach(run_folder)
    if server is not None:
        return server
    if has_state(run_folder):
        raise ServerError(
            f"the server of {run_folder} has ended; the reason may be in {run_folder / 'logs'}. "
            "Start it again with `ts-ensemble serve`, or remove what it left behind with "
            "`ts-ensemble stop`"
        )
    if run_folder is DEFAULT_RUN_FOLDER and _PLAIN_KEY_FILE.is_file():
        return None
    raise ServerError(
        f"no server runs in {run_folder}; start one with `ts-ensemble serve`, or name the address "
        "of another (--management for the management API, --address for predictions)"
    )


def inference_client(
    *,
    run_folder: Path | None,
    address: str | None,
    token: str | None,
    token_file: Path | None,
    transport: Literal["rest", "grpc"] = "rest",
    timeout: float = 60,
) -> InferenceClient:
    """Make an inference client of the server that a verb's options name.

    Args:
        run_folder: run folder of a server that `serve` started; None if the user named none.
        address: address of a server that `serve` did not start; it replaces the run folder.
        token: value of the option ``--token``.
        token_file: value of the option ``--token-file``.
        transport: ``rest`` or ``grpc``.
        timeout: seconds for each request.

    Raises:
        ServerError: no such server runs, or the token cannot be read.
    """
    if address is None:
        server = running_server(run_folder or DEFAULT_RUN_FOLDER)
        if server is not None:
            return server.client(timeout=timeout, transport=transport)
        address = _plain_address("inference", transport)
    token = given_token("inference", token=token, file=token_file)
    if token is None and is_this_machine(address):
        token = plain_token("inference")
    return InferenceClient(address, transport=transport, token=token, timeout=timeout)


def management_client(
    *,
    run_folder: Path,
    address: str | None,
    token: str | None,
    token_file: Path | None,
    timeout: float,
) -> ManagementClient:
    """Make a management client of the server that a verb's options name.

    Args:
        run_folder: run folder of a server that `serve` started, as for `running_server`.
        address: address of a server that `serve` did not start; it replaces the run folder.
        token: value of the option ``--token``.
        token_file: value of the option ``--token-file``.
        timeout: seconds for each call.

    Raises:
        ServerError: no such server runs, or the token cannot be read.
    """
    if address is None:
        server = running_server(run_folder)
        if server is not None:
            return server.management(timeout=timeout)
        address = _plain_address("management")
    token = given_token("management", token=token, file=token_file)
    if token is None and is_this_machine(address):
        token = plain_token("management")
    return ManagementClient(address, token=token, timeout=timeout)


def plain_token(kind: Literal["inference", "management"]) -> str | None:
    """The token that a plain ``torchserve --start`` wrote into the current folder, if it did."""
    try:
        return str(json.loads(_PLAIN_KEY_FILE.read_text())[kind]["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain_address(
    kind: Literal["inference", "management"], transport: Literal["rest", "grpc"] = "rest"
) -> str:
    """The address at which a plain ``torchserve --start`` in the current folder listens."""
    has_config = _PLAIN_CONFIG.is_file()
    properties = DEFAULTS | (effective(read_properties(_PLAIN_CONFIG)) if has_config else {})
    if transport == "grpc":
        return f"{properties[f'grpc_{kind}_address']}:{properties[f'grpc_{kind}_port']}"
    return properties[f"{kind}_address"]
