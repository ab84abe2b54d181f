"""HTTP sessions that send a token to the server that was named, and to nobody else."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase


def open_session(address: str, token: str | None) -> requests.Session:
    """A session for one server.

    On this machine it ignores the environment: a proxy would learn the token. For other machines
    the environment's proxies hold, but a password of ``.netrc`` never replaces the token.

    Args:
        address: e.g. ``http://127.0.0.1:8081``.
        token: sent with every request; None sends none.
    """
    session = requests.Session()
    if is_this_machine(address):
        session.trust_env = False
        # Whose certificates to believe is no secret, and a server here may have one of its own.
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    if token is not None:
        session.auth = _Bearer(token)
    return session


def is_this_machine(address: str) -> bool:
    """Whether an address to connect to, with or without a scheme, is this machine's own.

    ``0.0.0.0``, which a server binds to for all networks, is this machine when one connects to it.
    """
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        if host == "localhost":
            return True
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


class _Bearer(AuthBase):
    """As the session's `auth` it comes before .netrc, which a plain header does not."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
