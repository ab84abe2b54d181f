"""The members' architectures. The third, ResNet-18, comes from torchvision."""

from __future__ import annotations

from torch import nn


class SmallConvolutional(nn.Sequential):
    """Two convolutions, which find strokes wherever they are. Takes (N, 1, 8, 8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(2 * width * 16, 10),
        )


class Perceptron(nn.Sequential):
    """Fully connected layers, which know nothing of neighbouring pixels. Takes (N, 1, 8, 8)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )
