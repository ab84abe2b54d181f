"""The settings of one server: safe defaults, a config.properties, and single overrides.

The defaults are changed by the config file, and the config file by the overrides. TorchServe then
lets environment variables change the result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import ServerError
from ..handlers.base.suggestions import nearest
from .addresses import free_ports, is_loopback
from .properties_file import read_properties

DEFAULTS = {
    # Only programs on this machine reach the server. Tokens are on unless a setting disables them.
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_address": "127.0.0.1",
    "grpc_management_address": "127.0.0.1",
    "grpc_inference_port": "7070",
    "grpc_management_port": "7071",
    # TorchServe would start one worker for each core, each with a copy of the ensemble.
    "default_workers_per_model": "1",
    # Java only passes requests on. The threads of its optimising compiler and of its default
    # garbage collector would take the members' cores: they cost a fifth to a half of the images
    # per second in a server's first minute (measured on two cores).
    "vmargs": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    # 100 MiB hold 255 images of 400 KiB; TorchServe's default of 6.5 MB holds 16. An answer longer
    # than max_response_size makes the worker load all members again.
    "max_request_size": "104857600",
    "max_response_size": "104857600",
    # Number of requests that may wait while all workers are busy; the next one is answered 503.
    "job_queue_size": "100",
    # Seconds. Archives of this project specify both timeouts; these are for other archives.
    "default_response_timeout": "60",
    "default_startup_timeout": "180",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",
    # This pattern matches no URL, so archives come only from the model store, by their file names.
    # A URL, even file://, copies whatever the server's user can read into the model store.
    "allowed_urls": "(?!)",
}
"""The safe, tuned settings of every server; a config file and ``--set`` change single ones."""

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
"""The keys that TorchServe 0.12.0 reads from its configuration; it silently ignores all others."""

_SECRET_KEYS = frozenset({"keystore_pass"})
_PREFIX_OF_VARIABLES = "TS_"
# Most variables are named TS_ and the key in capitals. ConfigManager of TorchServe 0.12.0 names
# these differently.
_KEYS_OF_VARIABLES = {
    "TS_OPEN_INFERENCE_PROTOCOL": "ts_open_inference_protocol",
    "TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min",
    "TS_HEADER_KEY_SEQUENCE_ID": "ts_header_key_sequence_id",
    "TS_HEADER_KEY_SEQUENCE_START": "ts_header_key_sequence_start",
    "TS_HEADER_KEY_SEQUENCE_END": "ts_header_key_sequence_end",
}
_VARIABLE_REFERENCE = re.compile(r"\$\$([^$]+[^$])\$\$")


@dataclass(frozen=True)
class ServerSettings:
    """What a new server is to serve, and with which settings.

    Attributes:
        model_store: the folder with the archives.
        models: archives to load at the start, ``NAME=FILE`` or ``FILE``.
        config: a config.properties whose settings replace the defaults.
        overrides: single settings that replace those of `config`.
        trusted_keys: a file or folder of public keys; the server loads only archives that one of
            them signed. None: it loads every archive that `ts-ensemble build` wrote.
    """

    model_store: Path
    models: tuple[str, ...] = ()
    config: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    trusted_keys: Path | None = None

    def properties(self) -> dict[str, str]:
        """Merge the defaults, the config file and the overrides into one mapping.

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
        """Check that the archives exist; TorchServe would start without those that do not.

        Raises:
            ServerError: the model store has no such archive.
        """
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


def effective(
    properties: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The settings with which TorchServe really runs, after it has read the environment.

    TorchServe replaces ``$$NAME$$`` in a value by the variable NAME. If enable_envvars_config is
    on, ``TS_...`` variables replace settings.

    Args:
        properties: settings as they are written in the configuration.
        environment: environment variables of the server.

    Raises:
        ServerError: a variable is not set, without which TorchServe would not start.
    """

    def value_of(reference: re.Match[str]) -> str:
        if reference[1] not in environment:
            raise ServerError(f"the configuration names ${reference[1]}, which is not set; set it")
        return environment[reference[1]]

    replaced = {key: _VARIABLE_REFERENCE.sub(value_of, value) for key, value in properties.items()}
    if is_on(replaced, "enable_envvars_config"):
        for name, value in environment.items():
            key = _KEYS_OF_VARIABLES.get(name, name.removeprefix(_PREFIX_OF_VARIABLES).lower())
            if name.startswith(_PREFIX_OF_VARIABLES) and key in KNOWN_KEYS:
                replaced[key] = value
    return replaced


def differences(properties: Mapping[str, str]) -> list[str]:
    """List the settings that differ from `DEFAULTS`, e.g. ``job_queue_size=7 (default: 100)``."""
    lines = []
    for key, value in properties.items():
        if key != "model_store" and value != DEFAULTS.get(key):
            shown = "..." if key in _SECRET_KEYS else value
            lines.append(f"{key}={shown} (default: {DEFAULTS.get(key, 'not set')})")
    return lines


def may_enable_model_api(properties: Mapping[str, str]) -> bool:
    """Whether the owner of the management token would be the only one who can register models."""
    return (
        not is_on(properties, "disable_token_authorization")
        and is_loopback(properties.get("management_address", DEFAULTS["management_address"]))
        and is_loopback(properties.get("grpc_management_address", "127.0.0.1"))
    )


def is_on(properties: Mapping[str, str], key: str) -> bool:
    """Whether Java reads a setting as true: the word in any case, without spaces around it."""
    return properties.get(key, "").lower() == "true"


def on_free_ports() -> dict[str, str]:
    """Settings with which a server listens on the loopback address, on ports that are free now."""
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
    """Overrides for a short-lived server: free loopback ports, no tokens, model control on."""
    return {
        **on_free_ports(),
        "disable_token_authorization": "true",
        "enable_model_api": "true",
    }
