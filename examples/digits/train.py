"""Trains the members of the digits example, which takes a few seconds each on two cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from torchserve_ensemble.handlers.spec import load_spec

from ..data import Part
from ..training import train_member

EPOCHS = {"convolutional": 40, "perceptron": 60, "resnet18": 8}

MAX_SHIFT_PIXELS = {"convolutional": 1, "perceptron": 0, "resnet18": 4}
"""How far augmentation moves the images of each member."""


def train(
    folder: Path, training: Part, on_epoch: Callable[[str, int], None] = lambda name, total: None
) -> None:
    """Train every member whose weights file is missing.

    Args:
        folder: the folder of ensemble.yaml, below which the weights are written.
        training: the training part of the data.
        on_epoch: called after every epoch with the member's name and its number of epochs.
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
            shift=MAX_SHIFT_PIXELS[member.name],
            on_epoch=lambda name=member.name, total=epochs: on_epoch(name, total),
        )
