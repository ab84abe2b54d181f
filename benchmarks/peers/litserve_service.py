"""LitServe with its batching: ``python -m benchmarks.peers.litserve_service``."""

# The peers are installed in .venv-bench alone, and their decorators have no types.
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, attr-defined"

# No `from __future__ import annotations`: LitServe hands the annotation of decode_request on to
# FastAPI, which must see the type itself.
import os
from collections.abc import Sequence
from typing import Annotated

import litserve
import torch
from fastapi import File
from torch import Tensor

from benchmarks.peers.members import BATCH_SIZE, DELAY_MS, PORT, Members, columns, rows

# LitServe cannot send a form to its worker, but it can send bytes.
Files = Annotated[list[bytes], File(alias="file")]


class Api(litserve.LitAPI):  # type: ignore[misc]
    """All members in one worker; a batch holds the images of several requests."""

    def setup(self, device: str) -> None:
        """Load the members; LitServe calls this in the worker."""
        self.members = Members()

    def decode_request(self, request: Files) -> Tensor:
        """Transform the images of one request."""
        return torch.stack([self.members.transform(image) for image in request])

    def batch(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Join the images of several requests, and return them with their number per request."""
        return torch.cat(list(inputs)), [len(each) for each in inputs]

    def predict(self, inputs: tuple[Tensor, list[int]]) -> list[list[dict[str, str]]]:
        """Compute the labels of a batch, as a list of images for each request."""
        batch, counts = inputs
        labels = iter(rows(self.members.labels(batch)))
        return [[next(labels) for _ in range(count)] for count in counts]

    def unbatch(self, output: list[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
        """Return the output of `predict`, which already has one entry for each request."""
        return output

    def encode_response(self, output: list[dict[str, str]]) -> dict[str, list[str]]:
        """Make the answer to one request."""
        return columns(output)


def main() -> None:
    """Serve until the process is ended."""
    api = Api(
        max_batch_size=int(os.environ[BATCH_SIZE]),
        batch_timeout=float(os.environ[DELAY_MS]) / 1000,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(os.environ[PORT]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
