"""Members of the size of a ResNet-50, for the measurements; their weights are random."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from torchserve_ensemble.handlers.base.torchvision_imports import models
from torchserve_ensemble.handlers.spec import EnsembleSpec

from .ensembles import write_spec

NUM_LABELS = 10


def side_of_input(on_gpu: bool) -> int:
    """Height and width of an input: that of photographs on a GPU, and tiny without."""
    return 224 if on_gpu else 32


def architecture(on_gpu: bool) -> str:
    """The architecture in `torchvision.models`: ResNet-50, or without a GPU a ShuffleNet."""
    return "resnet50" if on_gpu else "shufflenet_v2_x0_5"


def build(on_gpu: bool, seed: int = 0) -> nn.Module:
    """Build a member with random weights."""
    torch.manual_seed(seed)
    builder = models.get_model_builder(architecture(on_gpu))
    module: nn.Module = builder(num_classes=NUM_LABELS)
    return module.eval()


def write_residual_networks(
    folder: Path, seeds: Iterable[int], *, on_gpu: bool, micro_batch: int = 64
) -> EnsembleSpec:
    """Write an ensemble of such members, in bfloat16 where the device is fast with it."""
    members = []
    for seed in seeds:
        file = folder / f"r{seed}.safetensors"
        if not file.exists():
            save_file(build(on_gpu, seed).state_dict(), file)
        members.append(
            {
                "name": f"r{seed}",
                "architecture": f"torchvision.models.{architecture(on_gpu)}",
                "arguments": {"num_classes": NUM_LABELS},
                "weights": file.name,
            }
        )
    runtime = {"engine": "torch", "precision": "auto", "micro_batch": micro_batch}
    return write_spec(folder, members, side=side_of_input(on_gpu), runtime=runtime)
