"""What the services in Python share: eager float32 members behind one transformation by Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.ensembles import ENSEMBLES

FOLDER = "BENCHMARK_FOLDER"
ENSEMBLE = "BENCHMARK_ENSEMBLE"
BATCH_SIZE = "BENCHMARK_BATCH_SIZE"
DELAY_MS = "BENCHMARK_DELAY_MS"
PORT = "BENCHMARK_PORT"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Members:
    """All members of the benchmark's ensemble in this process, on all cores."""

    def __init__(self) -> None:
        torch.set_num_threads(cores())
        self._ensemble = ENSEMBLES[os.environ[ENSEMBLE]]
        folder = Path(os.environ[FOLDER])
        self._modules = {n: self._ensemble.load(n, folder) for n in self._ensemble.members}

    def transform(self, image: bytes | Image.Image) -> Tensor:
        """A member's input."""
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        return self._ensemble.transform(opened)

    @torch.inference_mode()
    def labels(self, batch: Tensor) -> dict[str, list[str]]:
        """Every member's label for every image of (N, channels, height, width)."""
        labels = self._ensemble.labels
        return {
            name: [labels[index] for index in module(batch).argmax(dim=1).tolist()]
            for name, module in self._modules.items()
        }

    def answer(self, images: Sequence[bytes]) -> dict[str, list[str]]:
        """Every member's label for every image file."""
        return self.labels(torch.stack([self.transform(image) for image in images]))


def rows(labels: dict[str, list[str]]) -> list[dict[str, str]]:
    """The labels of each image."""
    count = len(next(iter(labels.values())))
    return [{name: each[row] for name, each in labels.items()} for row in range(count)]


def columns(labels: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """The opposite of `rows`."""
    return {name: [row[name] for row in labels] for name in labels[0]}
