"""Quantizes members to int8 with NNCF: static post-training quantization of models of OpenVINO.

Weights get one scale for each output channel. Activations get the range that they have on
calibration samples. Biases are corrected for the error that this causes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from torch import Tensor

from ..handlers.base.errors import ArchiveError

MIN_CALIBRATION_SAMPLES = 8
"""With fewer samples the measured ranges of the activations are too narrow."""

_NO_TELEMETRY = "NNCF_CI"
"""Environment variable; if it is set, NNCF does not report its use to its makers."""


def require_quantization(num_samples: int) -> None:
    """Check that `quantized` has what it needs.

    Args:
        num_samples: number of samples for the calibration.

    Raises:
        ArchiveError: NNCF is missing, or there are too few samples.
    """
    if importlib.util.find_spec("nncf") is None:
        raise ArchiveError(
            "runtime.precision: int8 needs NNCF on the build machine: "
            "pip install 'torchserve-ensemble[int8]'"
        )
    if num_samples < MIN_CALIBRATION_SAMPLES:
        raise ArchiveError(
            f"runtime.precision: int8 is calibrated on at least {MIN_CALIBRATION_SAMPLES} images "
            f"like those to come, and there are {num_samples}: give a folder of them (--samples "
            "FOLDER)"
        )


def quantized(model: Any, calibration: Tensor) -> Any:
    """Quantize a model's convolutions and matrix products.

    Args:
        model: an ``openvino.Model`` with one input; it stays as it is.
        calibration: inputs like those to come, float32 (N, channels, height, width).

    Returns:
        A new ``openvino.Model``, quantized to int8.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    import nncf

    nncf.set_log_level(logging.ERROR)
    samples = [calibration[i : i + 1].numpy() for i in range(len(calibration))]
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
    )
