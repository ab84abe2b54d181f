"""The build quantizes members to int8, and keeps that only if they answer as before, and faster."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_files import build_and_extract
from wide_member import prefer_int8, rows_of, write_wide

from torchserve_ensemble.archiver import compilation, quantization, trial
from torchserve_ensemble.archiver.quantization import MIN_CALIBRATION_SAMPLES
from torchserve_ensemble.handlers.base.errors import ArchiveError
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")


def build(folder: Path) -> tuple[Path, list[str]]:
    return build_and_extract(folder / "ensemble.yaml", folder / "samples")


def test_a_member_in_int8_answers_as_the_saved_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    prefer_int8(monkeypatch)
    write_wide(tmp_path)
    folder, reports = build(tmp_path)
    assert capfd.readouterr().out == "", "NNCF's own bars are not printed"
    assert "chosen" in rows_of(reports, "int8")[0]
    spec = load_spec(folder / "ensemble.yaml")
    with caplog.at_level(logging.INFO):
        result = Runtime.load(spec, folder, CPU, compiled=True).run(example_images(12))
    assert "wide: runs with openvino in int8" in caplog.text
    weights = (folder / "compiled" / "wide-int8.bin").stat().st_size
    assert weights < 0.3 * (folder / "w.safetensors").stat().st_size
    shutil.rmtree(folder / "compiled")
    expected = Runtime.load(spec, folder, CPU).run(example_images(12))
    assert not torch.equal(result.scores, expected.scores)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-2)


def test_a_member_that_answers_otherwise_in_int8_runs_in_floating_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MIN_SPEED_UP", 0.001)
    write_wide(tmp_path)
    differences = iter([0.5])
    original = trial.difference

    def large_at_first(*arguments: Any) -> float:
        return next(differences, None) or original(*arguments)

    monkeypatch.setattr(trial, "difference", large_at_first)
    _, reports = build(tmp_path)
    assert "5.0e-01" in rows_of(reports, "int8")[0]
    floating_point_rows = rows_of(reports, "bfloat16") + rows_of(reports, "float32")
    assert ["chosen" in row for row in floating_point_rows] == [True]


def test_layers_that_int8_would_change_too_much_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer_int8(monkeypatch)
    write_wide(tmp_path, loud_channel=True)
    folder, reports = build(tmp_path)
    whole, in_part = rows_of(reports, "int8")
    assert "in int8 its scores differ" in whole
    assert "int8 in part" in in_part
    assert "chosen" in in_part
    weights = (folder / "compiled" / "wide-int8-in-part.bin").stat().st_size
    assert weights < 0.9 * (folder / "w.safetensors").stat().st_size, "some layers are quantized"
    spec = load_spec(folder / "ensemble.yaml")
    result = Runtime.load(spec, folder, CPU, compiled=True).run(example_images(12))
    shutil.rmtree(folder / "compiled")
    expected = Runtime.load(spec, folder, CPU).run(example_images(12))
    assert not torch.equal(result.scores, expected.scores)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-2)


def test_taking_layers_back_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_MAX_RESTORING_SECONDS", 0)
    write_wide(tmp_path, loud_channel=True)
    _, reports = build(tmp_path)
    (in_part,) = [row for row in rows_of(reports, "int8") if "in part" in row]
    assert "after 0 s too few of its layers" in in_part


def test_int8_needs_images_for_the_calibration(tmp_path: Path) -> None:
    write_wide(tmp_path, num_samples=MIN_CALIBRATION_SAMPLES - 1)
    with pytest.raises(ArchiveError, match=r"at least 8 images .* there are 7: give a folder"):
        build(tmp_path)


def test_int8_needs_nncf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wide(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArchiveError, match=r"pip install 'torchserve-ensemble\[int8\]'"):
        build(tmp_path)
