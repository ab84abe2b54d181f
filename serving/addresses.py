"""The addresses on which a server listens: who can reach them, and which ports are free."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from ..handlers.base.errors import ServerError


def is_loopback(address: str) -> bool:
    """Whether only programs on this machine reach a server that listens on an address.

    Args:
        address: a URL such as ``http://127.0.0.1:8080``, a host such as ``::1``, or
            ``unix:/path``.
    """
    if address.startswith("unix:"):
        return True
    try:
        host = (urlsplit(address).hostname or "") if "://" in address else address
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "localhost" in (address, _host(address))


def check_ports(properties: Mapping[str, str]) -> None:
    """Check that the server can listen on its addresses.

    TorchServe itself reports no error if its gRPC port is taken.

    Args:
        properties: settings of the server.

    Raises:
        ServerError: a port is in use, or an address does not belong to this machine.
    """
    endpoints: dict[str, tuple[str | None, int]] = {}
    try:
        for setting in ("inference_address", "management_address", "metrics_address"):
            if properties[setting].startswith("http"):
                parts = urlsplit(properties[setting])
                default_port = 443 if parts.scheme == "https" else 80
                endpoints[setting] = (parts.hostname, parts.port or default_port)
        for service in ("inference", "management"):
            setting = f"grpc_{service}_port"
            host = properties.get(f"grpc_{service}_address", "127.0.0.1")
            endpoints[setting] = (host, int(properties[setting]))
    except ValueError as error:
        raise ServerError(f"{setting}={properties[setting]}: {error}; correct it") from None
    for setting, (configured_host, port) in endpoints.items():
        host = configured_host or "127.0.0.1"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as candidate:
            # Java sets this too. Connections that only linger then do not keep the port taken.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerError(
                    f"{setting}: cannot listen on {host}:{port}: {error}; another server may run "
                    f"there; choose another port (--set {setting}=...) or --free-ports"
                ) from error


def free_ports(count: int) -> list[int]:
    """Find `count` different ports of the loopback address on which nobody listens just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _host(url: str) -> str:
    """The host of a URL; empty if the URL cannot be parsed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
