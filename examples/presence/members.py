"""Three small detectors of different architectures. Each gives logits (N, 2): other, eight."""

from __future__ import annotations

from torch import nn


class Linear(nn.Sequential):
    """Logistic regression on the pixels. Takes (N, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 2))


class Perceptron(nn.Sequential):
    """One hidden layer. Takes (N, 1, 8, 8)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 2))


class Convolutional(nn.Sequential):
    """One convolution and a linear layer. Takes (N, 1, 8, 8)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(width * 16, 2),
        )
