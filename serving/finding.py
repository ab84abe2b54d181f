"""Which server a verb talks to, if it is not told an address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ..handlers.base.errors import ServerError
from .client import InferenceClient
from .management import ManagementClient
from .server import DEFAULT_RUN_FOLDER, Server, has_state
from .sessions import is_this_machine
from .settings import DEFAULTS, effective, read_properties
from .tokens import given_token

_KEY_FILE = Path("key_file.json")
_CONFIG = Path("config.properties")


def running_server(run_folder: Path) -> Server | None:
    """The running server of a run folder; never silently another one.

    Args:
        run_folder: `DEFAULT_RUN_FOLDER` itself where the user named none.

    Returns:
        None only where no run folder was named, `serve` left nothing behind, and a plain
        ``torchserve --start`` wrote its key_file.json into the current folder.

    Raises:
        ServerError: there is no such server; the message says what is there instead.
    """
    server = Server.attach(run_folder)
    if server is not None:
        return server
    if has_state(run_folder):
        raise ServerError(
            f"the server of {run_folder} has ended; its reason may be in {run_folder / 'logs'}. "
            "Start it again with `ts-ensemble serve`, or forget it with `ts-ensemble stop`"
        )
    if run_folder is DEFAULT_RUN_FOLDER and _KEY_FILE.is_file():
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
    """A client of the server that the options of a verb name.

    Args:
        run_folder: of a server that `serve` started; None where the user named none.
        address: of a server that `serve` did not start; instead of a run folder.
        token: see `given_token`.
        token_file: see `given_token`.
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
    """The same as `inference_client` for the management API; `run_folder` as `running_server`."""
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
    """The token of a plain ``torchserve --start`` in the current folder, if it wrote one."""
    try:
        return str(json.loads(_KEY_FILE.read_text())[kind]["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain_address(
    kind: Literal["inference", "management"], transport: Literal["rest", "grpc"] = "rest"
) -> str:
    """The address of a plain ``torchserve --start`` in the current folder."""
    properties = effective(read_properties(_CONFIG)) if _CONFIG.is_file() else {}
    properties = DEFAULTS | properties
    if transport == "grpc":
        return f"{properties[f'grpc_{kind}_address']}:{properties[f'grpc_{kind}_port']}"
    return properties[f"{kind}_address"]
