"""Train the members of the presence ensemble, each on its own few images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from torchserve_ensemble.handlers.spec import load_spec

from ..data import SEED, Part
from ..training import train_member

POSITIVE = 8
IMAGES_EACH = 200
EPOCHS = 150


def train(
    folder: Path, training: Part, on_epoch: Callable[[str, int], None] = lambda name, total: None
) -> None:
    """Train every member whose weights file is missing.

    Args:
        folder: the folder of ensemble.yaml; weights go below it.
        training: the training part of the data.
        on_epoch: called with the member's name and its number of epochs, after each.
    """
    spec = load_spec(folder / "ensemble.yaml", check_files=False)
    order = torch.randperm(len(training.files), generator=torch.Generator().manual_seed(SEED))
    targets = (torch.tensor(training.digits) == POSITIVE).long()
    for position, member in enumerate(spec.members):
        if (folder / member.weights).is_file():
            continue
        own = order[position * IMAGES_EACH : (position + 1) * IMAGES_EACH]
        train_member(
            spec,
            member,
            folder,
            training.inputs(spec.preprocessing_of(member))[own],
            targets[own],
            epochs=EPOCHS,
            shift=0,
            learning_rate=2e-2,
            seed=position,
            on_epoch=lambda name=member.name: on_epoch(name, EPOCHS),
        )
