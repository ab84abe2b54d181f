"""The configuration of one server: a base config.properties and what overrides it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..handlers.errors import ServerError

DEFAULTS = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_port": "7070",
    "grpc_management_port": "7071",
    "default_workers_per_model": "1",
}
"""TorchServe's own defaults, but for the workers: one for each core would copy the ensemble."""


@dataclass(frozen=True)
class ServerSettings:
    """How to start a server.

    Attributes:
        model_store: the folder with the archives.
        models: archives to load at the start, ``NAME=FILE`` or ``FILE``.
        config: a config.properties to start from.
        overrides: single settings instead of those of `config`.
    """

    model_store: Path
    models: tuple[str, ...] = ()
    config: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """Every setting that the server will see, in one mapping.

        Raises:
            ServerError: the config file or the model store does not exist.
        """
        if not self.model_store.is_dir():
            raise ServerError(
                f"model store {self.model_store} is no folder; build an archive into it with "
                "`ts-ensemble build`"
            )
        properties = dict(DEFAULTS)
        if self.config is not None:
            properties |= read_properties(self.config)
        properties |= {"model_store": str(self.model_store.resolve())}
        return properties | dict(self.overrides)


def read_properties(path: Path) -> dict[str, str]:
    """``key=value`` lines of a config.properties.

    Raises:
        ServerError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ServerError(f"{path}: cannot be read: {error.strerror}") from error
    pairs = (line.split("=", 1) for line in lines if "=" in line and line.lstrip()[:1] != "#")
    return {key.strip(): value.strip() for key, value in pairs}


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address such as ``http://127.0.0.1:8080``."""
    host = urlsplit(address).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def throw_away() -> dict[str, str]:
    """Overrides for a server of one test: free loopback ports, no tokens, model control on."""
    inference, management, metrics, grpc_inference, grpc_management = free_ports(5)
    return {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": str(grpc_inference),
        "grpc_management_port": str(grpc_management),
        "disable_token_authorization": "true",
        "enable_model_api": "true",
    }
