"""Trains the members of the presence example, each small member on 200 images of its own.

``python -m examples.presence.train`` trains the members of ``cascade.yaml``: the small members of
``ensemble.yaml``, and a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from torchserve_ensemble.handlers.spec import load_spec

from ..data import SEED, Part, load
from ..training import train_member

POSITIVE = 8
"""The digit whose presence the members detect."""

IMAGES_EACH = 200
"""Number of training images of each small member; no two small members share an image."""

EPOCHS = 150
LARGE = "resnet18"
"""Name of the large member, which is trained on all images of the training part."""

LARGE_EPOCHS = 3


def train(
    folder: Path,
    training: Part,
    on_epoch: Callable[[str, int], None] = lambda name, total: None,
    *,
    file: str = "ensemble.yaml",
) -> None:
    """Train every member whose weights file is missing.

    Args:
        folder: the folder of the spec, below which the weights are written.
        training: the training part of the data.
        on_epoch: called after every epoch with the member's name and its number of epochs.
        file: file name of the spec.
    """
    spec = load_spec(folder / file, check_files=False)
    order = torch.randperm(len(training.files), generator=torch.Generator().manual_seed(SEED))
    targets = (torch.tensor(training.digits) == POSITIVE).long()
    for position, member in enumerate(spec.members):
        if (folder / member.weights).is_file():
            continue
        large = member.name == LARGE
        rows = order if large else order[position * IMAGES_EACH : (position + 1) * IMAGES_EACH]
        epochs = LARGE_EPOCHS if large else EPOCHS
        train_member(
            spec,
            member,
            folder,
            training.inputs(spec.preprocessing_of(member))[rows],
            targets[rows],
            epochs=epochs,
            shift=0,
            learning_rate=2e-3 if large else 2e-2,
            seed=position,
            on_epoch=partial(on_epoch, member.name, epochs),
        )


if __name__ == "__main__":
    train(
        Path(__file__).parent,
        load()[0],
        lambda name, total: print(f"{name}: one of {total} epochs is done"),
        file="cascade.yaml",
    )
