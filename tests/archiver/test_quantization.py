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
from member_files import write_ensemble
from PIL import Image
from safetensors.torch import save_file

from torchserve_ensemble.archiver import compilation, trial
from torchserve_ensemble.archiver.quantization import MIN_CALIBRATION_SAMPLES
from torchserve_ensemble.handlers.base.errors import ArchiveError
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")
WIDE = """
from torch import nn

class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 3),
        )
"""


def write_wide(folder: Path, num_samples: int = MIN_CALIBRATION_SAMPLES) -> Path:
    """Write a spec with one member of more than 200,000 weights, and a folder of images."""
    (folder / "wide.py").write_text(WIDE)
    scope: dict[str, Any] = {}
    exec(WIDE, scope)
    torch.manual_seed(0)
    save_file(scope["Wide"]().state_dict(), folder / "w.safetensors")
    (folder / "samples").mkdir()
    for index, image in enumerate(example_images(num_samples)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "samples" / f"{index}.png")
    return write_ensemble(
        folder,
        [{"name": "wide", "architecture": "wide.py:Wide", "weights": "w.safetensors"}],
        runtime={"precision": "int8"},
        preprocessing={"shared": {"resize": [16, 16]}},
    )


def build(folder: Path) -> tuple[Path, list[str]]:
    return build_and_extract(folder / "ensemble.yaml", folder / "samples")


def rows_of(reports: list[str], precision: str) -> list[str]:
    """Return the rows of the build's table for one precision with OpenVINO."""
    lines = reports[-1].splitlines()
    return [line for line in lines if "openvino" in line and precision in line]


def test_a_member_in_int8_answers_as_the_saved_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # int8 counts as the fastest, whatever is faster on this machine.
    milliseconds: dict[str, tuple[float, ...]] = {}
    original = compilation.milliseconds_in_turns

    def recorded(*arguments: Any) -> dict[str, tuple[float, ...]]:
        milliseconds.update(original(*arguments))
        return milliseconds

    def favour_int8(candidate: tuple[float, ...], baseline: tuple[float, ...]) -> float:
        return 2.0 if candidate is milliseconds["int8"] else 1.5

    monkeypatch.setattr(compilation, "milliseconds_in_turns", recorded)
    monkeypatch.setattr(compilation, "speed_up", favour_int8)
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


def test_int8_needs_images_for_the_calibration(tmp_path: Path) -> None:
    write_wide(tmp_path, num_samples=MIN_CALIBRATION_SAMPLES - 1)
    with pytest.raises(ArchiveError, match=r"at least 8 images .* there are 7: give a folder"):
        build(tmp_path)


def test_int8_needs_nncf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wide(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArchiveError, match=r"pip install 'torchserve-ensemble\[int8\]'"):
        build(tmp_path)
