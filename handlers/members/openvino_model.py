"""Runs members on the CPU with OpenVINO, from the models that the build converted.

A model is a pair of files, ``NAME.xml`` (the operations) and ``NAME.bin`` (the weights). They are
data, not machine code: OpenVINO makes the kernels when it loads them, for the processor that it
finds. They therefore run on every x86-64 and Arm processor, and under every version of torch.
"""

from __future__ import annotations

import importlib
import logging
import queue
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import MemberError

logger = logging.getLogger(__name__)

SUFFIX = ".xml"
"""The suffix of the file that a model is loaded from."""

_TELEMETRY = "openvino_telemetry"
_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""OpenVINO's hint for each precision. For int8 it concerns the layers that are not quantized."""


def import_openvino() -> Any:
    """Import OpenVINO without letting it report its use to its makers.

    When it is imported, OpenVINO sends an event to an analytics service if its package for that is
    installed. A worker that serves private images must not send anything unasked.

    Raises:
        MemberError: OpenVINO is not installed.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    telemetry_before = sys.modules.get(_TELEMETRY)
    # None makes Python raise ImportError for this name; OpenVINO then uses a stub.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MemberError(
            f"this ensemble runs with OpenVINO, which cannot be imported ({error}): "
            "pip install openvino, or build the archive with runtime.engine: torch"
        ) from error
    finally:
        del sys.modules[_TELEMETRY]
        if telemetry_before is not None:
            sys.modules[_TELEMETRY] = telemetry_before


class OpenVinoModel:
    """A converted model that can be called like a function, by several threads at once.

    With several streams each call computes on one thread, and as many calls as there are streams
    run side by side. With one stream a call computes on all threads.
    """

    def __init__(self, path: Path, precision: str, *, streams: int = 1, threads: int = 1) -> None:
        """Load a model and make its kernels.

        Args:
            path: the model's ``.xml`` file; its ``.bin`` file lies beside it.
            precision: ``float32``, ``bfloat16`` or ``int8``, in which the model computes if the
                processor has such kernels.
            streams: number of calls that compute side by side.
            threads: number of threads of all streams together.

        Raises:
            MemberError: OpenVINO is not installed.
            RuntimeError: the files are damaged, or have an operation that OpenVINO does not know.
        """
        openvino = import_openvino()
        core = openvino.Core()
        hint = _PRECISION_HINTS[precision]
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if hint == "bf16" and "BF16" not in capabilities:
            logger.info("%s computes in float32: this processor has no bfloat16", path.stem)
            hint = "f32"
        model = core.compile_model(
            path,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hint,
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                # Every model would pin its threads to the same cores, beginning with the first.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._tensor = openvino.Tensor
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(model.create_infer_request())

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute the raw outputs of a batch.

        Args:
            batch: float32 (N, channels, height, width) on the CPU.

        Returns:
            The model's first output, float32.
        """
        inputs = self._tensor(batch.contiguous().numpy(), shared_memory=True)
        request = self._requests.get()
        try:
            request.set_input_tensor(inputs)
            request.infer()
            # The request's next call overwrites its output.
            return torch.from_numpy(request.get_output_tensor(0).data.copy())
        finally:
            self._requests.put(request)
