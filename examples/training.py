"""Trains the members of the examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from torchserve_ensemble.handlers.members.architecture import build_architecture
from torchserve_ensemble.handlers.spec import EnsembleSpec, Member

_MAX_PARAMETERS_FOR_ONE_THREAD = 200_000
"""Members with fewer parameters are trained on one thread. A second thread gains nothing for them.
On a busy machine it makes training twenty times as slow, because every operation waits until both
threads have run."""


def train_member(
    spec: EnsembleSpec,
    member: Member,
    folder: Path,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    shift: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Train a member with the architecture that the spec names, and write its weights file.

    Args:
        spec: the ensemble.
        member: one of its members.
        folder: the spec's folder.
        inputs: (N, channels, height, width) float32, preprocessed as the server does it.
        targets: (N,) int64.
        epochs: number of passes over the data.
        shift: largest number of pixels by which augmentation moves the images.
        learning_rate: peak of a one-cycle schedule (Smith & Topin 2018) for AdamW.
        seed: seed of initialisation, order and augmentation.
        on_epoch: called after every epoch.
    """
    torch.manual_seed(seed)
    model = build_architecture(member, folder).train()
    threads = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _MAX_PARAMETERS_FOR_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        _fit(model, inputs, targets, epochs, shift, learning_rate, on_epoch)
    finally:
        torch.set_num_threads(threads)
    _save(model, folder / member.weights)


def _fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    epochs: int,
    shift: int,
    learning_rate: float,
    on_epoch: Callable[[], None],
) -> None:
    """Run the training loop; the arguments are those of `train_member`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    batch_size = 64
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(batch_size):
            loss = cross_entropy(model(_shifted(inputs[rows], shift)), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        on_epoch()


def _shifted(images: Tensor, max_shift: int) -> Tensor:
    """Move all images of a batch by the same random number of pixels, and repeat their edges."""
    if max_shift == 0:
        return images
    down, right = torch.randint(0, 2 * max_shift + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    padded = pad(images, (max_shift,) * 4, mode="replicate")
    return padded[..., down : down + height, right : right + width]


def _save(model: nn.Module, path: Path) -> None:
    """Write the weights in one step, so that an interrupt leaves no partial weights file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file(model.state_dict(), partial)
    partial.replace(path)
