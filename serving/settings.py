"""The configuration of one server: a base config.properties and what overrides it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..handlers.base.errors import ServerError
from ..handlers.base.suggestions import nearest

DEFAULTS = {
    # Who can reach the server: programs on this machine. Tokens are on unless a setting says else.
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_address": "127.0.0.1",
    "grpc_management_address": "127.0.0.1",
    "grpc_inference_port": "7070",
    "grpc_management_port": "7071",
    # TorchServe would start one worker for each core, each with a copy of the ensemble.
    "default_workers_per_model": "1",
    # Java only hands requests on. The threads of its optimising compiler and its collector would
    # take the members' cores: in a server's first minute on two cores a fifth to a half of the
    # images per second.
    "vmargs": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    # 100 MiB: 255 images of 400 KiB. TorchServe's 6.5 MB hold 16 of them, and an answer above
    # max_response_size makes the worker reload all members.
    "max_request_size": "104857600",
    "max_response_size": "104857600",
    # Requests that wait while all workers are busy; the next one is answered 503.
    "job_queue_size": "100",
    # Seconds. An archive of this project says its own; these are for others.
    "default_response_timeout": "60",
    "default_startup_timeout": "180",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",
    # A pattern that matches nothing: archives come from the model store, by their file names.
    # A URL, even file://, copies whatever the server's user can read into the model store.
    "allowed_urls": "(?!)",
}
"""The safe, tuned settings that every server gets; a config file and ``--set`` only change them."""

KNOWN_KEYS = frozenset(
    """
    allowed_urls async_logging blacklist_env_vars certificate_file cors_allowed_headers
    cors_allowed_methods cors_allowed_origin cpp_log_config cpu_launcher_args cpu_launcher_enable
    decode_input_request default_response_timeout default_service_handler default_startup_timeout
    default_workers_per_model disable_system_metrics disable_token_authorization
    enable_envvars_config enable_grpc_ssl enable_metrics_api enable_model_api
    grpc_inference_address grpc_inference_max_connection_age_grace_ms
    grpc_inference_max_connection_age_ms grpc_inference_port grpc_management_address
    grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms
    grpc_management_port inference_address initial_distribution_port initial_worker_port
    install_py_dep_per_model io_ratio ipex_enable ipex_gpu_enable job_queue_size keystore
    keystore_pass keystore_type limit_max_image_pixels load_models management_address
    max_request_size max_response_size metric_time_interval metrics_address metrics_config
    metrics_mode model_metrics_auto_detect model_snapshot model_store models netty_client_threads
    number_of_gpu number_of_netty_threads plugins_path prefer_direct_buffer private_key_file
    service_envelope system_metrics_cmd token_expiration_min ts_header_key_sequence_end
    ts_header_key_sequence_id ts_header_key_sequence_start ts_open_inference_protocol
    unregister_model_timeout use_env_allowed_urls use_native_io vmargs workflow_store
    """.split()  # noqa: SIM905
)
"""Keys that TorchServe 0.12.0 reads; it ignores all others without a word."""

_SECRETS = frozenset({"keystore_pass"})
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
# As java.util.Properties: what ends a natural line, and what separates a key from its value.
_LINE_END = re.compile(r"\r\n|\r|\n")
_ENTRY = re.compile(
    r"(?P<key>(?:\\.|[^\\=: \t\f])*)[ \t\f]*(?:[=:][ \t\f]*)?(?P<value>.*)", re.DOTALL
)
_ESCAPE = re.compile(r"\\(u(?P<code>.{0,4})|(?P<other>.)|$)", re.DOTALL)
# TS_ variables that are not TS_ and the key in capitals (ConfigManager of TorchServe 0.12.0).
_KEYS_OF_VARIABLES = {
    "TS_OPEN_INFERENCE_PROTOCOL": "ts_open_inference_protocol",
    "TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min",
    "TS_HEADER_KEY_SEQUENCE_ID": "ts_header_key_sequence_id",
    "TS_HEADER_KEY_SEQUENCE_START": "ts_header_key_sequence_start",
    "TS_HEADER_KEY_SEQUENCE_END": "ts_header_key_sequence_end",
}
_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")


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
                raise ServerError(missing_archive(archive, self.model_store))


def missing_archive(archive: str, model_store: Path) -> str:
    """Say that a model store has no archive of a name, and which archives it has."""
    names = sorted(path.name for path in model_store.glob("*.mar"))
    return (
        f"{model_store} has no archive {archive}{nearest(archive, names)}; it has "
        f"{', '.join(names) or 'none: build one with `ts-ensemble build`'}"
    )


def read_properties(path: Path) -> dict[str, str]:
    """Read a config.properties as Java does (``java.util.Properties``).

    So ``key=value``, ``key: value`` and ``key value`` all count, ``#`` and ``!`` begin comments, a
    backslash at the end continues a line, and the encoding is Latin-1 with ``\\uXXXX``.

    Raises:
        ServerError: the file cannot be read, or Java would refuse it or take it for another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ServerError(f"{path}: cannot be read: {error}") from error
    if content.startswith(b"\xef\xbb\xbf"):
        raise ServerError(
            f"{path}: begins with a byte order mark, which Java takes for a part of the first key; "
            "save it as UTF-8 without one"
        )
    properties = {}
    for line in _logical_lines(content.decode("latin-1")):
        entry = _ENTRY.fullmatch(line)
        assert entry is not None, "both parts may be empty, so every line is an entry"
        try:
            properties[_unescaped(entry["key"])] = _unescaped(entry["value"])
        except ValueError as error:
            raise ServerError(f"{path}: {line!r}: {error}; Java refuses the file") from None
    return properties


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blank ones, continued lines joined."""
    joined, continued = "", False
    lines = _LINE_END.split(text)
    for line in lines if lines[-1] else lines[:-1]:
        line = line.lstrip(" \t\f")
        if not joined and line[:1] in ("", "#", "!"):
            continued = False
            continue
        joined += line
        continued = (len(joined) - len(joined.rstrip("\\"))) % 2 == 1
        if continued:
            joined = joined[:-1]
        else:
            yield joined
            joined = ""
    if joined or continued:
        yield joined


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found["code"] is not None:
            if not re.fullmatch("[0-9a-fA-F]{4}", found["code"]):
                raise ValueError("\\u needs four hexadecimal digits")
            return chr(int(found["code"], 16))
        return _ESCAPES.get(found["other"] or "", found["other"] or "")

    # Java's characters are UTF-16: two escapes may make one character.
    units = _ESCAPE.sub(character, text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write_properties(properties: Mapping[str, str]) -> str:
    """Settings as the text of a config.properties that Java reads back as they are."""
    return "".join(
        f"{_escaped(key, ' =:#!')}={_escaped(value)}\n" for key, value in properties.items()
    )


def _escaped(text: str, separators: str = "") -> str:
    """Text with the characters escaped that Java's reader would take for something else."""
    written = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}
    written |= {separator: f"\\{separator}" for separator in separators}
    escaped = "".join(written.get(character, character) for character in text)
    if escaped.startswith(" "):
        escaped = f"\\{escaped}"
    return "".join(each if each.isascii() else _utf16_escapes(each) for each in escaped)


def _utf16_escapes(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def effective(
    properties: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Settings as they hold once TorchServe has looked into the environment.

    It replaces ``$$NAME$$`` by that variable, and lets ``TS_...`` variables win where
    enable_envvars_config is on.

    Raises:
        ServerError: a variable is missing, with which TorchServe would not start.
    """

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ServerError(f"the configuration names ${found[1]}, which is not set; set it")
        return environment[found[1]]

    replaced = {key: _VARIABLE.sub(value_of, value) for key, value in properties.items()}
    if is_on(replaced, "enable_envvars_config"):
        for name, value in environment.items():
            key = _KEYS_OF_VARIABLES.get(name, name.removeprefix("TS_").lower())
            if name.startswith("TS_") and key in KNOWN_KEYS:
                replaced[key] = value
    return replaced


def differences(properties: Mapping[str, str]) -> list[str]:
    """What differs from `DEFAULTS`, for people: ``job_queue_size=7 (default: 100)``."""
    found = []
    for key, value in properties.items():
        if key != "model_store" and value != DEFAULTS.get(key):
            shown = "..." if key in _SECRETS else value
            found.append(f"{key}={shown} (default: {DEFAULTS.get(key, 'not set')})")
    return found


def may_enable_model_api(properties: Mapping[str, str]) -> bool:
    """Whether only the owner of the management token could register models."""
    return (
        not is_on(properties, "disable_token_authorization")
        and is_loopback(properties.get("management_address", DEFAULTS["management_address"]))
        and is_loopback(properties.get("grpc_management_address", "127.0.0.1"))
    )


def is_on(properties: Mapping[str, str], key: str) -> bool:
    """Whether a setting is true, as Java reads it: in any case, but without spaces."""
    return properties.get(key, "").lower() == "true"


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
                    f"there; choose another port (--set {setting}=...) or --free-ports"
                ) from error


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def on_free_ports() -> dict[str, str]:
    """Return settings with which a server listens on the loopback address, on free ports."""
    inference, management, metrics, grpc_inference, grpc_management = free_ports(5)
    return {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": str(grpc_inference),
        "grpc_management_port": str(grpc_management),
    }


def throw_away() -> dict[str, str]:
    """Return settings for a server of one test: free ports, no tokens, model control on."""
    return {
        **on_free_ports(),
        "disable_token_authorization": "true",
        "enable_model_api": "true",
    }
