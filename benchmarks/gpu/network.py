"""The networks of the check; a copy of this file lies beside each spec that names them."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

CYCLES_PER_SECOND = 2.5e9
"""Clock cycles of a GPU in a second, at most. Waiting for so many takes at least a second."""


class Network(nn.Module):
    """Three convolutions and a linear layer, for images of any size."""

    def __init__(self, width: int = 8, outputs: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, batch: Tensor) -> Tensor:
        """Compute logits (N, outputs) of a batch (N, 3, height, width) float32."""
        logits: Tensor = self.head(self.features(batch))
        return logits


class Slow(Network):
    """A `Network` that keeps its device busy for some time with each call."""

    def __init__(self, seconds: float, width: int = 8, outputs: int = 10) -> None:
        super().__init__(width, outputs)
        self.seconds = seconds

    def forward(self, batch: Tensor) -> Tensor:
        """Compute logits (N, outputs); on a GPU the call returns long before they are there."""
        if batch.is_cuda:
            torch.cuda._sleep(int(self.seconds * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
        else:
            time.sleep(self.seconds)
        return super().forward(batch)


class Hungry(Network):
    """A `Network` for which every batch of more than four samples is too large."""

    def forward(self, batch: Tensor) -> Tensor:
        """Compute logits (N, outputs).

        Raises:
            torch.OutOfMemoryError: there are more than four samples.
        """
        if len(batch) > 4:
            raise torch.OutOfMemoryError("more than four samples")
        return super().forward(batch)
