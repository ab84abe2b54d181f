"""Train the members of the digits ensemble: a few seconds each on two cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from torchserve_ensemble.handlers.spec import load_spec

from ..data import Part
from ..training import train_member

EPOCHS = {"convolutional": 40, "perceptron": 60, "resnet18": 8}
SHIFT = {"convolutional": 1, "perceptron": 0, "resnet18": 4}


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
    for member in spec.members:
        if (folder / member.weights).is_file():
            continue
        epochs = EPOCHS[member.name]
        train_member(
            spec,
            member,
            folder,
            training.inputs(spec.preprocessing_of(member)),
            torch.tensor(training.digits),
            epochs=epochs,
            shift=SHIFT[member.name],
            on_epoch=lambda name=member.name, total=epochs: on_epoch(name, total),
        )
