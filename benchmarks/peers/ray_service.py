"""Ray Serve with its batching: ``python -m benchmarks.peers.ray_service``."""

# The peers are installed in .venv-bench alone, and their decorators have no types.
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, attr-defined"

from __future__ import annotations

import asyncio
import os

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.members import BATCH_SIZE, DELAY_MS, PORT, Members, columns, cores, rows

_OBJECT_STORE_BYTES = 100 * 2**20
"""Memory for Ray's object store, of which Ray would otherwise reserve a share of all memory."""


@serve.deployment(
    num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": max(1, cores() - 1)}
)
class Service:
    """All members in one replica; a batch holds images of several requests."""

    def __init__(self) -> None:
        self.members = Members()

    @serve.batch(
        max_batch_size=int(os.environ.get(BATCH_SIZE, "8")),
        batch_wait_timeout_s=float(os.environ.get(DELAY_MS, "5")) / 1000,
    )
    async def labels(self, images: list[bytes]) -> list[dict[str, str]]:
        """Compute the labels of a batch of images."""
        return rows(self.members.answer(images))

    async def __call__(self, request: Request) -> dict[str, list[str]]:
        """Answer one request."""
        async with request.form() as form:
            files = [await file.read() for file in form.getlist("file")]  # type: ignore[union-attr]
        return columns(await asyncio.gather(*(self.labels(file) for file in files)))


def main() -> None:
    """Serve until the process is ended."""
    ray.init(
        num_cpus=cores(),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": int(os.environ[PORT])},
    )
    serve.run(Service.bind(), route_prefix="/predict", blocking=True)


if __name__ == "__main__":
    main()
