"""Checks of the machine, the configuration, a spec and a running server, with what to do."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ..handlers.errors import EnsembleError, ServerError
from ..handlers.spec import load_spec
from ..handlers.strict_yaml import nearest
from .java import find_java
from .server import Server, server_log
from .settings import is_loopback, is_on, read_properties

_SMALLEST_FREE_BYTES = 2 * 1024**3
_DEFAULT_SIZE = 6_553_500

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


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, and what to do about it."""

    level: Level
    what: str
    remedy: str = ""


def diagnose(
    *, config: Path | None = None, spec: Path | None = None, server: Server | None = None
) -> list[Finding]:
    """Every check that applies.

    Args:
        config: a config.properties; one that does not exist is passed over.
        spec: an ensemble's YAML file.
        server: a running server.
    """
    findings = list(_machine())
    if config is not None and config.is_file():
        findings += _configuration(config)
    if spec is not None:
        findings += _spec(spec)
    if server is not None:
        findings += _running(server)
    return findings


def _machine() -> Iterator[Finding]:
    try:
        java = find_java()
        yield Finding(Level.OK, f"Java {java.version} from {java.source} ({java.home})")
    except ServerError as error:
        yield Finding(Level.PROBLEM, "no Java that runs TorchServe", error.message)
    for line in metadata.requires("torchserve-ensemble") or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            yield _package(requirement)
    try:
        importlib.import_module("yaml")
    except ModuleNotFoundError:
        yield Finding(
            Level.PROBLEM, "TorchServe's worker dies without PyYAML", "pip install pyyaml"
        )
    if os.environ.get("PYTHONPATH"):
        yield Finding(
            Level.WARNING,
            "PYTHONPATH is set: a plain `torchserve --start` puts it before the archive",
            "unset PYTHONPATH, or start with `ts-ensemble serve`, which does",
        )
    free = shutil.disk_usage(Path.cwd()).free
    if free < _SMALLEST_FREE_BYTES:
        yield Finding(
            Level.WARNING,
            f"{free / 1e9:.1f} GB of disk are free; each archive is extracted at registration",
            "make room, or let TEMP name a folder on another disk",
        )


def _package(requirement: Requirement) -> Finding:
    remedy = f"pip install '{requirement}'"
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(Level.PROBLEM, f"{requirement.name} is not installed", remedy)
    if not requirement.specifier.contains(installed, prereleases=True):
        what = f"{requirement.name} {installed} is outside {requirement.specifier}"
        return Finding(Level.PROBLEM, what, remedy)
    return Finding(Level.OK, f"{requirement.name} {installed}")


def _configuration(path: Path) -> Iterator[Finding]:
    properties = read_properties(path)
    for key in properties:
        if key not in KNOWN_KEYS:
            yield Finding(
                Level.WARNING,
                f"{path}: {key} is no setting of TorchServe{nearest(key, KNOWN_KEYS)}",
                "TorchServe ignores it without a word: correct or remove it",
            )
    guarded = not is_on(properties, "disable_token_authorization")
    for key in ("inference_address", "management_address", "metrics_address"):
        if key in properties and not is_loopback(properties[key]) and not guarded:
            yield Finding(
                Level.PROBLEM if key == "management_address" else Level.WARNING,
                f"{path}: {key}={properties[key]} is open to the network without tokens",
                "bind to 127.0.0.1, or remove disable_token_authorization",
            )
    for key in ("grpc_inference_address", "grpc_management_address"):
        address = properties.get(key, "127.0.0.1")
        if not is_loopback(address) and not guarded:
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={address} is open without tokens",
                "bind to 127.0.0.1",
            )
    if "default_workers_per_model" not in properties:
        yield Finding(
            Level.WARNING,
            f"{path}: default_workers_per_model is not set: one worker for each of "
            f"{os.cpu_count()} cores, each with a full copy of the ensemble",
            "default_workers_per_model=1",
        )
    for key in ("max_request_size", "max_response_size"):
        size = properties.get(key, str(_DEFAULT_SIZE))
        if not size.isdecimal():
            yield Finding(
                Level.PROBLEM, f"{path}: {key}={size} is no number of bytes", f"{key}=104857600"
            )
        elif int(size) <= _DEFAULT_SIZE:
            yield Finding(
                Level.WARNING,
                f"{path}: {key} is {properties.get(key, _DEFAULT_SIZE)} bytes; a larger "
                + ("form is refused" if "request" in key else "answer makes the worker reload"),
                f"{key}=104857600",
            )
    if is_on(properties, "install_py_dep_per_model"):
        yield Finding(
            Level.WARNING,
            f"{path}: install_py_dep_per_model lets an archive install packages at load",
            "install the packages once, into the server's environment",
        )
    yield Finding(Level.OK, f"{path}: {len(properties)} settings read")


def _spec(path: Path) -> Iterator[Finding]:
    try:
        spec = load_spec(path)
    except EnsembleError as error:
        for line in error.message.splitlines():
            yield Finding(Level.PROBLEM, line, "correct the spec")
        return
    yield Finding(Level.OK, f"{path}: {spec.name} {spec.version}, {len(spec.members)} members")
    cores = os.cpu_count() or 1
    if spec.serving.workers > cores:
        yield Finding(
            Level.WARNING,
            f"{path}: {spec.serving.workers} workers share {cores} cores",
            "lower serving.workers: members of one worker share memory, workers do not",
        )


def _running(server: Server) -> Iterator[Finding]:
    try:
        with server.management(timeout=10) as management:
            versions = [v for n in management.models() for v in management.versions(n)]
    except ServerError as error:
        yield Finding(Level.PROBLEM, "the server does not answer", error.message)
        return
    for version in versions:
        ready = sum(worker.ready for worker in version.workers)
        what = f"{version.name} {version.version}: {ready} of {version.min_workers} workers READY"
        if version.ready:
            yield Finding(Level.OK, what)
        else:
            remedy = f"the reason is in {server_log(server.run_folder)}; /ping does not tell"
            yield Finding(Level.PROBLEM, what, remedy)
