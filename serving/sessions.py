"""Opens HTTP sessions that send a token only to the server for which it is meant."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase


def open_session(address: str, token: str | None) -> requests.Session:
    """Open an HTTP session for one server.

    For a server on this machine the session ignores the proxies of the environment, since a proxy
    would learn the token. For other machines it uses them, but a password in ``.netrc`` never
    replaces the token.

    Args:
        address: URL of the server, e.g. ``http://127.0.0.1:8081``.
        token: the token to send with every request; None to send none.
    """
    session = requests.Session()
    if is_this_machine(address):
        session.trust_env = False
        # Ignoring the environment would also ignore its certificates, which a server on this
        # machine may need; they are no secret.
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    if token is not None:
        session.auth = _Bearer(token)
    return session


def is_this_machine(address: str) -> bool:
    """Whether a client that connects to an address reaches this machine.

    A client that connects to ``0.0.0.0`` reaches this machine, although a server that listens on
    it is open to all networks.

    Args:
        address: a URL, or ``host:port``.
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
    """Adds the token to each request as a bearer token.

    A session's `auth` takes precedence over .netrc; a plain header would not.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
