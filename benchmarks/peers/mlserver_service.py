"""MLServer with its adaptive batching: ``python -m benchmarks.peers.mlserver_service``.

A custom handler reads the forms and hands the images on to `predict` inside the process. As tensors
of the Open Inference Protocol they would travel as lists of numbers in JSON.
"""

# MLServer is installed in .venv-bench-mlserver alone, and its decorators have no types.
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, attr-defined"

# No `from __future__ import annotations`: MLServer hands the annotations of a custom handler on to
# FastAPI, which must see the types themselves.
import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import torch
from fastapi import File
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import StringCodec
from mlserver.context import model_context
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput
from mlserver.utils import install_uvloop_event_loop

from benchmarks.peers.members import BATCH_SIZE, DELAY_MS, PORT, Members, cores

Files = Annotated[list[bytes], File(alias="file")]


class Model(MLModel):  # type: ignore[misc]
    """All members in the server's process; a batch holds the images of several requests."""

    async def load(self) -> bool:
        """Load the members."""
        self._members = Members()
        self._decoding = ThreadPoolExecutor(cores())
        # MLServer starts a batch even while another is computed; here they wait for each other.
        self._computing = ThreadPoolExecutor(1)
        return True

    @custom_handler(rest_path="/predict")
    async def answer(self, files: Files) -> dict[str, list[str]]:
        """Answer one form with the labels of every member for every image."""
        images = RequestInput(name="file", datatype="BYTES", shape=[len(files), 1], data=files)
        # MLServer sets this context, which its batching needs, for its own routes only.
        with model_context(self.settings):
            response = await self.predict(InferenceRequest(inputs=[images]))
        return {output.name: StringCodec.decode_output(output) for output in response.outputs}

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute the labels of a batch of image files."""
        files = payload.inputs[0].data.root
        run = asyncio.get_running_loop().run_in_executor
        labels = await run(self._computing, self._labels, files)
        outputs = [StringCodec.encode_output(name, each) for name, each in labels.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _labels(self, files: list[bytes]) -> dict[str, list[str]]:
        """Decode the images of a batch on all cores, and then compute their labels on all cores."""
        return self._members.labels(
            torch.stack(list(self._decoding.map(self._members.transform, files)))
        )


async def serve() -> None:
    """Serve until the process is ended."""
    server = MLServer(
        Settings(
            host="127.0.0.1",
            http_port=int(os.environ[PORT]),
            grpc_port=0,  # gRPC cannot be switched off; this is any free port.
            # A parallel worker would run the custom handler without batching.
            parallel_workers=0,
            metrics_endpoint=None,
            gzip_enabled=False,
            debug=False,  # no log of accesses
        )
    )
    model = ModelSettings(
        name="ensemble",
        implementation=Model,
        max_batch_size=int(os.environ[BATCH_SIZE]),
        max_batch_time=float(os.environ[DELAY_MS]) / 1000,
    )
    await server.start([model])


def main() -> None:
    """Run the server on the event loop that MLServer's command line takes."""
    install_uvloop_event_loop()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
