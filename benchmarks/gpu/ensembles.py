"""Ensembles of the check's own networks: files, specs, inputs, and the scores that are right."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from torchserve_ensemble.handlers.engine.member_scores import MemberScores, State
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec

from . import network
from .network import Network

SIDE = 16
"""Height and width of an input, in pixels."""

WIDTH_OF_LARGE = 48
"""Width of a `Network` that is large enough to run with channels last and in bfloat16."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2, "auto": 1e-2}
"""Precision -> largest difference of a score from float32 on the CPU. The first leaves room for
TensorFloat-32, in which torch computes convolutions on a GPU. The others are the default of
``runtime.tolerance``."""

_MIN_SPREAD = 0.03
"""Scores of different samples must differ by this much on average. Otherwise a member that ignores
its input would pass too."""


def inputs(count: int, side: int = SIDE) -> Tensor:
    """Make inputs (count, 3, side, side) float32 that differ in colour, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    colors = 2 * torch.rand((count, 3, 1, 1), generator=generator) - 1
    return 2 * colors + 0.3 * torch.randn((count, 3, side, side), generator=generator)


def image_files(count: int) -> list[bytes]:
    """Make PNG files that differ in colour and size."""
    files = []
    for number, pixels in enumerate(inputs(count, 48)):
        levels = (64 * pixels + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels).resize((40 + number, 48)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def network_of(seed: int, width: int = 8, outputs: int = 10) -> Network:
    """Make a network whose scores differ from sample to sample."""
    torch.manual_seed(seed)
    module = Network(width, outputs).eval()
    with torch.no_grad():
        logits = module(inputs(8))
        module.head.weight.mul_(0.8 / logits.std(dim=0).unsqueeze(1))
        module.head.bias.sub_(module(inputs(8)).mean(dim=0))
    return module


def write_spec(
    folder: Path, members: Sequence[Mapping[str, object]], *, side: int = SIDE, **settings: object
) -> EnsembleSpec:
    """Write ``ensemble.yaml`` beside the members' files, and load it.

    Args:
        folder: holds the files of the members.
        members: keys of each member.
        side: height and width of an input.
        settings: further keys of the spec, which replace the default ones.
    """
    shutil.copy(network.__file__, folder / "network.py")
    content = {
        "name": "check",
        "version": "1.0",
        "task": "classification",
        "labels": [f"label{number}" for number in range(10)],
        "preprocessing": {"only": {"resize": [side, side]}},
        "members": [dict(each) for each in members],
        "runtime": {"engine": "torch"},
    }
    path = folder / "ensemble.yaml"
    path.write_text(yaml.safe_dump(content | settings), encoding="utf-8")
    return load_spec(path)


def save_member(
    folder: Path, name: str, module: Network, architecture: str = "Network", **arguments: object
) -> dict[str, object]:
    """Write a member's weights, and return its keys of the spec."""
    save_file(module.state_dict(), folder / f"{name}.safetensors")
    width, outputs = module.head.in_features // 4, module.head.out_features
    return {
        "name": name,
        "architecture": f"network.py:{architecture}",
        "arguments": {"width": width, "outputs": outputs, **arguments},
        "weights": f"{name}.safetensors",
    }


@torch.no_grad()
def right_scores(modules: Sequence[nn.Module], batch: Tensor) -> Tensor:
    """Compute scores (M, N, C) on the CPU in float32, with nothing but torch.

    Raises:
        AssertionError: the scores hardly depend on the sample.
    """
    scores = torch.stack([module(batch).softmax(dim=1) for module in modules])
    spread = float(scores.std(dim=1).mean())
    assert spread >= _MIN_SPREAD, f"scores hardly depend on the sample: spread {spread:.1e}"
    return scores


def require_right(result: MemberScores, expected: Tensor, tolerance: float) -> float:
    """Compare scores with the right ones, and return the largest difference.

    Raises:
        AssertionError: a member did not answer, or a score differs by more than the tolerance.
    """
    reasons = "; ".join(sorted(set(result.reasons.values())))
    assert bool((result.states == State.ANSWERED).all()), f"not all members answered: {reasons}"
    changed = float((result.scores - expected).abs().max())
    assert changed <= tolerance, f"scores differ by {changed:.1e}, more than {tolerance:g}"
    return changed


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what the project logs within a ``with`` block."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("torchserve_ensemble"), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
