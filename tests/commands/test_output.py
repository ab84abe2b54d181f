"""What verbs write: no traceback into a closed pipe, and no progress bar but on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.commands.printing import progress_bar, reported_work, with_progress

TS_ENSEMBLE = [sys.executable, "-m", "torchserve_ensemble"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, and images beside it."""
    folder = tmp_path_factory.mktemp("probes")
    probes(folder)
    (folder / "images").mkdir()
    for number in range(40):
        (folder / "images" / f"{number}.png").write_bytes(image(number / 40))
    return folder


LOCAL = ("predict", "--local", "ensemble.yaml", "images", "--per-request", "1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["predict", "--help"],
        [*LOCAL, "--format", "lines"],
        [*LOCAL, "--format", "csv"],
        [*LOCAL, "--format", "json"],
        [*LOCAL, "--format", "table"],
        ["completion", "bash"],
        ["doctor", "--config", "none", "--run-folder", "none"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_is_no_traceback(arguments: list[str], folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [*TS_ENSEMBLE, *arguments],
            cwd=folder,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 0


def test_a_closed_pipe_of_errors_is_no_failure_either(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*TS_ENSEMBLE, "predict", "--local", "none.yaml", "images"],
        cwd=folder,
        stdout=writer,
        stderr=writer,
        timeout=120,
    )
    os.close(writer)
    assert result.returncode in (0, 1)


def run_on_terminal(arguments: list[str], folder: Path) -> tuple[bytes, bytes]:
    """Run a command with standard error on a terminal; what it wrote to a pipe, and to that."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [*TS_ENSEMBLE, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=its_end,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(its_end)
    shown = io.BytesIO()
    try:
        while data := os.read(terminal, 65536):
            shown.write(data)
    except OSError:
        # Linux reports the end of a terminal as an error.
        pass
    finally:
        os.close(terminal)
    assert process.stdout is not None
    output = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 0, shown.getvalue()
    return output, shown.getvalue()


@pytest.mark.parametrize("output_format", ["lines", "json"])
def test_a_bar_is_shown_on_a_terminal_and_the_output_goes_where_it_should(
    output_format: str, folder: Path
) -> None:
    output, shown = run_on_terminal([*LOCAL, "--format", output_format], folder)
    assert b"predicting" in shown
    assert b'"label"' not in shown
    lines = output.splitlines()
    rows = list(map(json.loads, lines)) if output_format == "lines" else json.loads(output)
    assert [row["sample"] for row in rows] == [f"images/{number}.png" for number in range(40)]


def test_a_build_shows_a_bar(folder: Path, tmp_path: Path) -> None:
    output, shown = run_on_terminal(["build", "ensemble.yaml", "--output", str(tmp_path)], folder)
    assert b"building ensemble.yaml" in shown
    assert output.startswith(str(tmp_path).encode())


def test_nothing_is_shown_on_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rich takes everything for a terminal if this is set.
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("one") as step:
        step(2)
    assert list(with_progress([1, 2], "two", 2)) == [1, 2]
    with reported_work("three") as report:
        report("a sentence")
    printed = capsys.readouterr()
    assert printed.out == "a sentence\n"
    assert printed.err == ""
