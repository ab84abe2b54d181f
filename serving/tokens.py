"""The tokens of TorchServe's key_file.json, which expire."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path

import requests

from ..handlers.base.errors import ServerError
from .sessions import open_session

TOKEN_VARIABLE = "TS_ENSEMBLE_TOKEN"
"""An environment variable that holds a token: unlike an argument, `ps` shows it to nobody."""

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


def given_token(
    kind: str,
    *,
    token: str | None,
    file: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """The token that somebody gave: as an argument, in a file, or in the environment.

    Args:
        kind: ``management`` or ``inference``, for files that hold both.
        token: ``--token``.
        file: ``--token-file``; the token alone, or a key_file.json of TorchServe.
        environment: for `TOKEN_VARIABLE`.

    Raises:
        ServerError: the file cannot be read or holds no such token.
    """
    if token is not None:
        return token
    if file is None:
        return environment.get(TOKEN_VARIABLE) or None
    try:
        text = file.read_text().strip()
        found = str(json.loads(text)[kind]["key"]) if text.startswith("{") else text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{file}: no {kind} token can be read: {error!r}") from error
    if not found or not found.isprintable():
        raise ServerError(f"{file}: holds no token; write it there as one line")
    return found


def _read(key_file: Path) -> dict[str, dict[str, str]]:
    try:
        keys: dict[str, dict[str, str]] = json.loads(key_file.read_text())
    except (OSError, ValueError) as error:
        raise ServerError(f"{key_file}: cannot be read: {error}") from error
    return keys


def _renew(management_address: str, kind: str, api_key: str) -> None:
    url = f"{management_address}/token"
    try:
        with open_session(management_address, api_key) as session:
            session.get(url, params={"type": kind}, timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise ServerError(f"{url}: the {kind} token was not renewed: {error}") from error
