"""Runs an ensemble's members in one process, as the peers that are written in Python do.

Pillow transforms the images. The members run with torch in float32, or with OpenVINO in the
precision that an environment variable names. Environment variables, which `starting` sets, also
name everything else that a service must know.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.ensembles import ENSEMBLES
from torchserve_ensemble.handlers.members.openvino_model import import_openvino

# Names of environment variables. FOLDER is the folder with the weights.
FOLDER = "BENCHMARK_FOLDER"
ENSEMBLE = "BENCHMARK_ENSEMBLE"
BATCH_SIZE = "BENCHMARK_BATCH_SIZE"
DELAY_MS = "BENCHMARK_DELAY_MS"
PORT = "BENCHMARK_PORT"
OPENVINO = "BENCHMARK_OPENVINO"
"""The precision for OpenVINO: f32, bf16 or int8; without it the members run with torch."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Members:
    """All members of the benchmark's ensemble in this process, on all cores."""

    def __init__(self) -> None:
        """Load the ensemble that the environment variables name."""
        torch.set_num_threads(cores())
        self._ensemble = ENSEMBLES[os.environ[ENSEMBLE]]
        folder = Path(os.environ[FOLDER])
        modules = {n: self._ensemble.load(n, folder) for n in self._ensemble.members}
        precision = os.environ.get(OPENVINO)
        self._modules: dict[str, Callable[[Tensor], Tensor]] = dict(modules)
        if precision is not None:
            files = sorted((folder / "samples").iterdir())
            samples = torch.stack([self.transform(file.read_bytes()) for file in files])
            self._modules = {
                name: with_openvino(module, samples, precision) for name, module in modules.items()
            }

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


def with_openvino(
    module: torch.nn.Module, samples: Tensor, precision: str
) -> Callable[[Tensor], Tensor]:
    """Convert a member as OpenVINO's documentation recommends, to run on all cores.

    Args:
        module: the member.
        samples: inputs for the export and for the calibration of int8, float32
            (N, channels, height, width).
        precision: f32, bf16 or int8. With int8, layers that are not quantized run in bf16.

    Returns:
        Function from inputs (N, channels, height, width) to raw outputs (N, outputs).
    """
    openvino = import_openvino()
    model = openvino.convert_model(module, example_input=samples[:2])
    model.reshape([-1, *samples.shape[1:]])
    if precision == "int8":
        os.environ["NNCF_CI"] = "1"  # no telemetry
        import nncf

        dataset = nncf.Dataset([sample.unsqueeze(0).numpy() for sample in samples])
        model = nncf.quantize(model, dataset, subset_size=len(samples))
    compiled = openvino.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cores(),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "int8" else precision,
        },
    )
    return lambda batch: torch.from_numpy(compiled(batch.numpy())[0])


def rows(labels: dict[str, list[str]]) -> list[dict[str, str]]:
    """Turn lists of labels by member into one mapping from member to label for each image."""
    num_images = len(next(iter(labels.values())))
    return [{name: each[row] for name, each in labels.items()} for row in range(num_images)]


def columns(labels: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Turn mappings from member to label, one for each image, into lists of labels by member."""
    return {name: [row[name] for row in labels] for name in labels[0]}
