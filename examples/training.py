"""One training loop for all members of the examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from torchserve_ensemble.handlers.members.architecture import build_architecture
from torchserve_ensemble.handlers.spec import EnsembleSpec, Member

# A second thread gains nothing for members this small, and on a busy machine it costs twenty-fold:
# every operation then waits until both threads have had their turn.
_SMALL = 200_000


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
    """Train a member's architecture as the spec has it and write its weights file.

    Args:
        spec: the ensemble.
        member: one of its members.
        folder: the spec's folder.
        inputs: float32 (N, channels, height, width), as the member sees them when served.
        targets: int64 (N,).
        epochs: passes over the data.
        shift: images are moved by up to so many pixels, as augmentation.
        learning_rate: peak of a one-cycle schedule (Smith & Topin 2018) for AdamW.
        seed: of initialisation, order and augmentation.
        on_epoch: called after every epoch.
    """
    torch.manual_seed(seed)
    model = build_architecture(member, folder).train()
    threads = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL:
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    batch = 64
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(batch):
            loss = cross_entropy(model(_shifted(inputs[chosen], shift)), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        on_epoch()


def _shifted(images: Tensor, most: int) -> Tensor:
    """Move a batch by a random number of pixels, edges repeated."""
    if most == 0:
        return images
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    padded = pad(images, (most, most, most, most), mode="replicate")
    return padded[..., down : down + height, right : right + width]


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file(model.state_dict(), partial)
    partial.replace(path)
