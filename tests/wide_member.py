"""A member that is large enough to gain from int8, and the rows of the build's table about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from member_files import write_ensemble
from PIL import Image
from safetensors.torch import save_file

from torchserve_ensemble.archiver import compilation
from torchserve_ensemble.archiver.quantization import MIN_CALIBRATION_SAMPLES
from torchserve_ensemble.handlers.inputs.example_inputs import example_images

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


def write_wide(
    folder: Path,
    num_samples: int = MIN_CALIBRATION_SAMPLES,
    *,
    precision: str = "int8",
    loud_channel: bool = False,
) -> Path:
    """Write a spec with one member of more than 200,000 weights, and a folder of images.

    Args:
        folder: an empty folder.
        num_samples: number of images.
        precision: the spec's ``runtime.precision``.
        loud_channel: whether the first layer's first channel is 1,000 times as large as the others,
            and the second layer takes a thousandth of it. The member's answers stay the same, but
            int8 has no steps left for the other channels.
    """
    (folder / "wide.py").write_text(WIDE)
    scope: dict[str, Any] = {}
    exec(WIDE, scope)
    torch.manual_seed(0)
    weights = scope["Wide"]().state_dict()
    if loud_channel:
        # Sharper outputs, which a change of a feature changes more.
        weights["10.weight"] *= 2
        weights["0.weight"][0] *= 1000
        weights["0.bias"][0] *= 1000
        weights["3.weight"][:, 0] /= 1000
    save_file(weights, folder / "w.safetensors")
    (folder / "samples").mkdir()
    for index, image in enumerate(example_images(num_samples)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "samples" / f"{index}.png")
    return write_ensemble(
        folder,
        [{"name": "wide", "architecture": "wide.py:Wide", "weights": "w.safetensors"}],
        runtime={"precision": precision},
        preprocessing={"shared": {"resize": [16, 16]}},
    )


def rows_of(reports: list[str], precision: str) -> list[str]:
    """Return the rows of the build's table for one precision with OpenVINO."""
    lines = reports[-1].splitlines()
    return [line for line in lines if "openvino" in line and precision in line]


def prefer_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the build take int8 for the fastest, whatever is faster on this machine."""
    milliseconds: dict[str, tuple[float, ...]] = {}
    original = compilation.milliseconds_in_turns

    def recorded(*arguments: Any) -> dict[str, tuple[float, ...]]:
        milliseconds.update(original(*arguments))
        return milliseconds

    def speed_up(candidate: tuple[float, ...], baseline: tuple[float, ...]) -> float:
        int8 = [times for label, times in milliseconds.items() if label.startswith("int8")]
        return 2.0 if any(candidate is times for times in int8) else 1.5

    monkeypatch.setattr(compilation, "milliseconds_in_turns", recorded)
    monkeypatch.setattr(compilation, "speed_up", speed_up)
