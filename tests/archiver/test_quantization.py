"""int8 is calibrated at build, and kept only if it answers as before and is faster."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_files import build_and_extract, needs_compiler
from member_files import write_ensemble
from PIL import Image
from safetensors.torch import save_file

from torchserve_ensemble.archiver import trial
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


def write_wide(folder: Path, samples: int = MIN_CALIBRATION_SAMPLES) -> Path:
    """Write a member of more than 200,000 weights, and a folder `samples` with images."""
    (folder / "wide.py").write_text(WIDE)
    scope: dict[str, Any] = {}
    exec(WIDE, scope)
    torch.manual_seed(0)
    save_file(scope["Wide"]().state_dict(), folder / "w.safetensors")
    (folder / "samples").mkdir()
    for index, image in enumerate(example_images(samples)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "samples" / f"{index}.png")
    return write_ensemble(
        folder,
        [{"name": "wide", "architecture": "wide.py:Wide", "weights": "w.safetensors"}],
        runtime={"compile": True, "precision": "int8"},
        preprocessing={"shared": {"resize": [16, 16]}},
    )


def build(folder: Path) -> tuple[Path, list[str]]:
    return build_and_extract(folder / "ensemble.yaml", folder / "samples")


@needs_compiler
def test_a_member_in_int8_answers_as_the_saved_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # int8 is kept whether or not it is faster on this machine.
    monkeypatch.setattr(trial, "_MIN_SPEED_UP", 0.001)
    write_wide(tmp_path)
    folder, said = build(tmp_path)
    assert said[-1].startswith("member 'wide' compiled in int8: its scores differ by at most")
    spec = load_spec(folder / "ensemble.yaml")
    with caplog.at_level(logging.INFO):
        found = Runtime.load(spec, folder, CPU, compiled=True).run(example_images(12))
    assert "wide: the compiled executable runs, in int8" in caplog.text
    shutil.rmtree(folder / "compiled")
    expected = Runtime.load(spec, folder, CPU).run(example_images(12))
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-2)


@needs_compiler
def test_one_that_answers_otherwise_runs_in_floating_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_MIN_SPEED_UP", 0.001)
    write_wide(tmp_path)
    differences = iter([0.5])
    original = trial.difference

    def first_is_large(*arguments: Any) -> float:
        return next(differences, None) or original(*arguments)

    monkeypatch.setattr(trial, "difference", first_is_large)
    _, said = build(tmp_path)
    assert said[-2] == (
        "member 'wide' does not run in int8: in int8 its scores differ by 5.0e-01, more than 0.01"
    )
    assert "member 'wide' compiled in" in said[-1]
    assert "int8" not in said[-1]


def test_it_needs_images_to_calibrate_on(tmp_path: Path) -> None:
    write_wide(tmp_path, samples=MIN_CALIBRATION_SAMPLES - 1)
    with pytest.raises(ArchiveError, match=r"at least 8 images .* there are 7: give a folder"):
        build(tmp_path)


def test_it_needs_torchao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wide(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArchiveError, match=r"pip install 'torchserve-ensemble\[int8\]'"):
        build(tmp_path)
