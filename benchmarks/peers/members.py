"""The members as the services in Python run them: eager, in float32, after Pillow's transformation.

The services learn from environment variables what to serve; `starting` sets them.
"""

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
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Members:
    """All members of the benchmark's ensemble in this process, on all cores."""

    def __init__(self) -> None:
        torch.set_num_threads(cores())
        self._ensemble = ENSEMBLES[os.environ[ENSEMBLE]]
        folder = Path(os.environ[FOLDER])
        self._modules = {n: self._ensemble.load(n, folder) for n in self._ensemble.members}

    def transform(self, image: bytes | Image.Image) -> Tensor:
        """Turn an image or an image file into a member's input."""
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        return self._ensemble.transform(opened)

    @torch.inference_mode()
    def labels(self, batch: Tensor) -> dict[str, list[str]]:
        """Compute every member's label for every image of a batch (N, channels, height, width)."""
        labels = self._ensemble.labels
        return {
            name: [labels[index] for index in module(batch).argmax(dim=1).tolist()]
            for name, module in self._modules.items()
        }

    def answer(self, images: Sequence[bytes]) -> dict[str, list[str]]:
        """Compute every member's label for every image file."""
        return self.labels(torch.stack([self.transform(image) for image in images]))


def rows(labels: dict[str, list[str]]) -> list[dict[str, str]]:
    """Turn lists of labels by member into one mapping from member to label for each image."""
    count = len(next(iter(labels.values())))
    return [{name: each[row] for name, each in labels.items()} for row in range(count)]


def columns(labels: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Turn mappings from member to label, one for each image, into lists of labels by member."""
    return {name: [row[name] for row in labels] for name in labels[0]}
