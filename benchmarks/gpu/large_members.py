"""Members of the size of a ResNet-50, for the measurements; their weights are random."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from torchserve_ensemble.handlers.base.torchvision_imports import models
from torchserve_ensemble.handlers.spec import EnsembleSpec

from .ensembles import SIDE, WIDTH_OF_LARGE, network_of, save_member, write_spec

_NUM_LABELS = 10


def side_of_input(on_gpu: bool) -> int:
    """Height and width of an input: that of photographs on a GPU, and tiny without."""
    return 224 if on_gpu else SIDE


def name_of(on_gpu: bool) -> str:
    """What the members are: on a CPU they are small ones that take the same paths."""
    return "ResNet-50" if on_gpu else "a small network"


def build_large(on_gpu: bool, seed: int = 0) -> nn.Module:
    """Build a member with random weights."""
    if not on_gpu:
        return network_of(seed, WIDTH_OF_LARGE)
    torch.manual_seed(seed)
    # With random weights each block would double the variance of its input, and the answers of the
    # last ones would depend on rounding. All convolutions are computed either way.
    module: nn.Module = models.resnet50(num_classes=_NUM_LABELS, zero_init_residual=True)
    return module.eval()


def write_large(
    folder: Path, seeds: Iterable[int], *, on_gpu: bool, micro_batch: int = 64
) -> EnsembleSpec:
    """Write an ensemble of such members, in bfloat16 where the device is fast with it.

    Args:
        folder: for the files. Weights that it has already are not written again.
        seeds: one for each member; equal seeds give equal weights.
        on_gpu: whether the members will run on a GPU.
        micro_batch: the largest number of samples that a member computes in one call.
    """
    members = [_write_member(folder, seed, on_gpu) for seed in seeds]
    runtime = {"engine": "torch", "precision": "auto", "micro_batch": micro_batch}
    return write_spec(folder, members, side=side_of_input(on_gpu), runtime=runtime)


def _write_member(folder: Path, seed: int, on_gpu: bool) -> dict[str, object]:
    if not on_gpu:
        return save_member(folder, f"m{seed}", network_of(seed, WIDTH_OF_LARGE))
    file = folder / f"m{seed}.safetensors"
    if not file.exists():
        save_file(build_large(on_gpu, seed).state_dict(), file)
    return {
        "name": f"m{seed}",
        "architecture": "torchvision.models.resnet50",
        "arguments": {"num_classes": _NUM_LABELS},
        "weights": file.name,
    }
