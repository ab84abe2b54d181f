"""Reads tokens: from TorchServe's key_file.json, where they expire, or as a user gives them."""

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
"""Environment variable that may hold a token; unlike an argument, `ps` does not show it."""

# A token is renewed when it has less time left, so that it does not expire on its way.
_MIN_TIME_LEFT = datetime.timedelta(seconds=60)


def read_token(key_file: Path, kind: str, management_address: str) -> str:
    """Read a token from a key_file.json, and renew it first if it has expired.

    TorchServe lets tokens expire after the time that the setting token_expiration_min names, an
    hour by default. The API key in the same file renews them.

    Args:
        key_file: the key_file.json that TorchServe wrote.
        kind: ``management`` or ``inference``.
        management_address: URL of the management API, which renews tokens.

    Raises:
        ServerError: the file cannot be read, or the server does not renew the token.
    """
    keys = _read(key_file)
    try:
        expires = datetime.datetime.fromisoformat(keys[kind]["expiration time"])
        if expires < datetime.datetime.now(datetime.UTC) + _MIN_TIME_LEFT:
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
    """The token that a user gave: as an argument, in a file, or in the environment.

    Args:
        kind: ``management`` or ``inference``; selects the token in a file that holds both.
        token: value of the option ``--token``.
        file: value of the option ``--token-file``: a file that holds only the token, or a
            key_file.json of TorchServe.
        environment: environment variables, among them perhaps `TOKEN_VARIABLE`.

    Returns:
        The first token of the argument, the file and the environment; None if none was given.

    Raises:
        ServerError: the file cannot be read or holds no such token.
    """
    if token is not None:
        return token
    if file is None:
        return environment.get(TOKEN_VARIABLE) or None
    try:
        text = file.read_text().strip()
        token = str(json.loads(text)[kind]["key"]) if text.startswith("{") else text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{file}: no {kind} token can be read: {error!r}") from error
    if not token or not token.isprintable():
        raise ServerError(f"{file}: holds no token; write it there as one line")
    return token


def _read(key_file: Path) -> dict[str, dict[str, str]]:
    """Read the whole key_file.json: kind of key -> the key and its expiration time.

    Raises:
        ServerError: the file cannot be read.
    """
    try:
        keys: dict[str, dict[str, str]] = json.loads(key_file.read_text())
    except (OSError, ValueError) as error:
        raise ServerError(f"{key_file}: cannot be read: {error}") from error
    return keys


def _renew(management_address: str, kind: str, api_key: str) -> None:
    """Ask TorchServe to write a new token into its key_file.json.

    Raises:
        ServerError: the server does not answer, or refuses.
    """
    url = f"{management_address}/token"
    try:
        with open_session(management_address, api_key) as session:
            session.get(url, params={"type": kind}, timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise ServerError(f"{url}: the {kind} token was not renewed: {error}") from error
