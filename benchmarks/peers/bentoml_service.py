"""BentoML with its adaptive batching: ``bentoml serve benchmarks.peers.bentoml_service:Service``.

There is a single service, which is fastest: another service in front of it would copy every image
once more. A batchable API answers with a list, here ``[{model: label}, ...]`` with an entry for
each image.
"""

# The peers are installed in .venv-bench alone, and their decorators have no types.
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, attr-defined"

# No `from __future__ import annotations`: BentoML needs the types, not their names.
import os

import bentoml
import torch
from PIL.Image import Image

from benchmarks.peers.members import BATCH_SIZE, Members, cores, rows


# The delay is not set, because BentoML adapts it to its own measurements, within max_latency_ms
# (60 s).
@bentoml.service(workers=1, traffic={"timeout": 120}, resources={"cpu": str(cores())})
class Service:
    """All members in one process."""

    def __init__(self) -> None:
        self.members = Members()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get(BATCH_SIZE, "8")))
    def predict(self, file: list[Image]) -> list[dict[str, str]]:
        """Compute the labels of a batch of images."""
        return rows(self.members.labels(torch.stack([self.members.transform(i) for i in file])))
