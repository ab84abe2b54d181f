"""The check for a GPU, run with the CPU as device and tiny sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import STEPS, main, rows_of_process, run_step
from benchmarks.gpu.children import ROOT
from benchmarks.gpu.rows import Outcome, Row, Step

CPU = torch.device("cpu")

SKIPPED = {
    "limits": {"out of memory, of the device"},
    "single image": {"batch 1: the same member as a CUDA graph"},
    "compiled": {
        "one member, compiled by AOTInductor, float32",
        "one member, compiled by AOTInductor, bfloat16",
    },
    "build": {"build with runtime.engine: aot_inductor"},
}
"""Name of a step -> the rows that a CPU cannot have."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", STEPS)
def test_no_row_of_a_step_fails(name: str) -> None:
    if name == "compiled" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    rows = run_step(STEPS[name], CPU)
    problems = [row.name + "\n" + row.traceback for row in rows if row.outcome is Outcome.FAILED]
    assert not problems, "\n".join(problems)
    skipped = {row.name for row in rows if row.outcome is Outcome.SKIPPED}
    assert skipped == SKIPPED.get(name, set())
    assert all(row.detail for row in rows)


def test_command_writes_a_table_and_json(tmp_path: Path) -> None:
    options = ["--output", "results", "--device", "cpu", "--steps", "decoding"]
    command = [str(ROOT / "scripts" / "check-gpu"), sys.executable, *options]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    content = json.loads((tmp_path / "results" / "check-gpu.json").read_text())
    outcomes = {row["name"]: row["outcome"] for row in content["rows"]}
    assert outcomes["decoding by torchvision on the CPU"] == "measured"
    table = (tmp_path / "results" / "check-gpu.md").read_text()
    assert "| decoding | decoding by torchvision on the CPU | measured |" in table
    assert f"- torch: {torch.__version__}" in table
    assert str(tmp_path) not in json.dumps(content)


def test_steps_that_there_is_no_time_for_are_left_out(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path), "--device", "cpu", "--minutes", "0.1"]) == 0
    content = json.loads((tmp_path / "check-gpu.json").read_text())
    assert [row["step"] for row in content["rows"]] == list(STEPS)
    assert {row["outcome"] for row in content["rows"]} == {"skipped"}
    assert content["rows"][0]["detail"].startswith("left out: ")


def test_step_that_takes_too_long_is_ended_and_keeps_its_rows() -> None:
    (row,) = rows_of_process(STEPS["formats"], "cpu", 0.1)
    assert (row.name, row.outcome) == ("the rest", Outcome.SKIPPED)
    assert row.detail == "left out for time: not finished after 0 s"


def test_process_that_breaks_is_a_failed_row_with_its_last_words() -> None:
    (row,) = rows_of_process(replace(STEPS["formats"], name="other"), "cpu", 60)
    assert row.outcome is Outcome.FAILED
    assert "invalid choice: 'other'" in row.detail


def test_row_that_fails_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    step = Step("some", CPU, tmp_path, tmp_path / "rows")
    with step.row("first"):
        raise RuntimeError("CUDA error: an illegal memory access")
    with step.row("second", measures=True) as row:
        row.detail = "2 ms"
    first, second = (Row.from_json(line) for line in (tmp_path / "rows").read_text().splitlines())
    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.MEASURED)
    assert first.detail == "RuntimeError: CUDA error: an illegal memory access"
    assert "test_check_gpu.py" in first.traceback


def test_missing_gpu_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--output", str(tmp_path), "--device", "cuda:0"]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().err
