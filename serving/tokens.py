"""The tokens of TorchServe's key_file.json, which expire."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import requests

from ..handlers.errors import ServerError

_SPARE = datetime.timedelta(seconds=60)


def read_token(key_file: Path, kind: str, management_address: str) -> str:
    """A valid token.

    TorchServe lets tokens expire (token_expiration_min, an hour by default); an expired one is
    renewed with the file's API key.

    Args:
        key_file: as TorchServe wrote it.
        kind: ``management`` or ``inference``.
        management_address: where an expired token is renewed.

    Raises:
        ServerError: the file cannot be read, or the server does not renew the token.
    """
    keys = _read(key_file)
    try:
        expires = datetime.datetime.fromisoformat(keys[kind]["expiration time"])
        if expires < datetime.datetime.now(datetime.UTC) + _SPARE:
            _renew(management_address, kind, keys["API"]["key"])
            keys = _read(key_file)
        return str(keys[kind]["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{key_file}: no {kind} token can be read: {error!r}; start the server again"
        ) from error


def _read(key_file: Path) -> dict[str, dict[str, str]]:
    try:
        keys: dict[str, dict[str, str]] = json.loads(key_file.read_text())
    except (OSError, ValueError) as error:
        raise ServerError(f"{key_file}: cannot be read: {error}") from error
    return keys


def _renew(management_address: str, kind: str, api_key: str) -> None:
    url = f"{management_address}/token"
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        requests.get(url, params={"type": kind}, headers=headers, timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise ServerError(f"{url}: the {kind} token was not renewed: {error}") from error
