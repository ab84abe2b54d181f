"""Tests the quickstart, which is the README's first command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parent.parent.parent


def table(output: str, title: str) -> dict[str, list[float]]:
    """Read a printed table: first cell of each row -> numbers of the other cells."""
    rows = {}
    for line in output.partition(title)[2].partition("└")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) > 1 and re.fullmatch(r"[\d.]+", cells[1]):
            rows[cells[0]] = [float(cell) for cell in cells[1:]]
    return rows


def test_quickstart_trains_builds_serves_and_measures(tmp_path: Path) -> None:
    """The quickstart uses existing weights again, so that only the first run trains members."""
    command = [sys.executable, "-m", "examples.quickstart", "--free-ports"]
    command += ["--run-folder", str(tmp_path)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    output = result.stdout
    assert result.returncode == 0, result.stderr
    assert "one image alone: " in output
    accuracy = table(output, "digits: accuracy")
    members = [accuracy[name][0] for name in ("convolutional", "perceptron", "resnet18")]
    assert accuracy["mean"][0] >= sorted(members)[1], "soft voting is no worse than most members"
    assert min(members) > 0.9
    presence = table(output, "presence of an eight: 43 among 450 images")
    single = [presence[name] for name in ("linear", "perceptron", "convolutional")]
    assert presence["high-sensitivity"][0] > max(sensitivity for sensitivity, *_ in single)
    assert presence["high-specificity"][1] > max(specificity for _, specificity, *_ in single)
    assert not (tmp_path / "server.json").exists(), "the server was stopped"
