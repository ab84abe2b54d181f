"""The configuration of one server: a base config.properties and what overrides it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..handlers.errors import ServerError
from ..handlers.strict_yaml import nearest

DEFAULTS = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_port": "7070",
    "grpc_management_port": "7071",
    "default_workers_per_model": "1",
    "vmargs": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
}
"""TorchServe's own defaults, but for two.

Workers: one for each core would copy the ensemble. Java: the threads of its optimising compiler and
its collector would take the members' cores, in a server's first minute on two cores for a fifth to
a half of the images per second.
"""


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
            ServerError: the config file, the model store or an archive does not exist.
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
        properties |= dict(self.overrides)
        self._check_models()
        return properties

    def _check_models(self) -> None:
        """TorchServe goes on without an archive that it does not find."""
        for model in self.models:
            archive = model.partition("=")[2] or model
            if "://" not in archive and not (self.model_store / archive).exists():
                there = sorted(path.name for path in self.model_store.glob("*.mar"))
                raise ServerError(
                    f"{self.model_store} has no archive {archive}{nearest(archive, there)}; it "
                    f"has {', '.join(there) or 'none: build one with `ts-ensemble build`'}"
                )


def read_properties(path: Path) -> dict[str, str]:
    """``key=value`` lines of a config.properties.

    Raises:
        ServerError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"{path}: cannot be read as UTF-8: {error}") from error
    pairs = (line.split("=", 1) for line in lines if "=" in line and line.lstrip()[:1] != "#")
    return {key.strip(): value.strip() for key, value in pairs}


def is_on(properties: Mapping[str, str], key: str) -> bool:
    """Whether a setting is true, as Java reads it: in any case."""
    return properties.get(key, "").strip().lower() == "true"


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``http://127.0.0.1:8080``, ``::1`` or ``unix:/path``."""
    if address.startswith("unix:"):
        return True
    try:
        host = (urlsplit(address).hostname or "") if "://" in address else address
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "localhost" in (address, _host(address))


def _host(address: str) -> str:
    """The host of an address; empty where it cannot be read."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def check_ports(properties: Mapping[str, str]) -> None:
    """Check that the server can listen where it should; TorchServe's gRPC fails without a word.

    Raises:
        ServerError: a port is in use, or an address is not this machine's.
    """
    wanted: dict[str, tuple[str | None, int]] = {}
    try:
        for setting in ("inference_address", "management_address", "metrics_address"):
            if properties[setting].startswith("http"):
                parts = urlsplit(properties[setting])
                default = 443 if parts.scheme == "https" else 80
                wanted[setting] = (parts.hostname, parts.port or default)
        for kind in ("inference", "management"):
            setting = f"grpc_{kind}_port"
            host = properties.get(f"grpc_{kind}_address", "127.0.0.1")
            wanted[setting] = (host, int(properties[setting]))
    except ValueError as error:
        raise ServerError(f"{setting}={properties[setting]}: {error}; correct it") from None
    for setting, (named, port) in wanted.items():
        host = named or "127.0.0.1"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as candidate:
            # As Java does: a port whose last connections only linger is free.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerError(
                    f"{setting}: cannot listen on {host}:{port}: {error}; another server may run "
                    f"there; choose another, e.g. --set {setting}=..."
                ) from error


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
