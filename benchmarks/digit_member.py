"""The architecture of the members that read digits; every archive of them contains this file."""

from __future__ import annotations

from torch import Tensor, nn


class SmallConvolutional(nn.Module):
    """Two convolutions and a linear layer, for images of 8 x 8 gray pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, batch: Tensor) -> Tensor:
        """Compute logits (N, 10) of a batch (N, 1, 8, 8) float32."""
        logits: Tensor = self.layers(batch)
        return logits
