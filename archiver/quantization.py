"""Quantizes members to int8 with NNCF: static post-training quantization of models of OpenVINO.

Weights get one scale for each output channel. Activations get the range that they have on
calibration samples. Biases are corrected for the error that this causes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..handlers.base.errors import ArchiveError
from .not_compiled import NotCompiled

MIN_CALIBRATION_SAMPLES = 8
"""With fewer samples the measured ranges of the activations are too narrow."""

_MAX_RESTORED_GROUPS = 30
"""A model of which more must be taken back gains little from int8."""

_MAX_RESTORING_SECONDS = 90
"""NNCF ranks all layers anew whenever a layer's return did not help, which takes a minute."""

_NUM_RANKING_INPUTS = 32

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
            "int8 (runtime.precision, or --data with auto) needs NNCF on the build machine: "
            "pip install 'torchserve-ensemble[int8]'"
        )
    if num_samples < MIN_CALIBRATION_SAMPLES:
        raise ArchiveError(
            f"int8 is calibrated on at least {MIN_CALIBRATION_SAMPLES} images "
            f"like those to come, and there are {num_samples}: give a folder of them (--samples "
            "FOLDER)"
        )


@dataclass(frozen=True)
class AccuracyGoal:
    """What a quantized model must reach. Layers that keep it from this are not quantized.

    Attributes:
        inputs: inputs of the member, float32 (N, channels, height, width).
        loss: function from raw outputs for all inputs, float32 (N, outputs), to the loss.
        max_loss: the largest loss allowed.
        changes: function from rows of `inputs` and raw outputs for them to (n,) numbers: how far
            each output is from that of the saved member. The layers are ranked by it.
    """

    inputs: Tensor
    loss: Callable[[Tensor], float]
    max_loss: float
    changes: Callable[[Sequence[int], Tensor], Tensor]


def quantized(model: Any, calibration: Tensor, goal: AccuracyGoal | None = None) -> Any:
    """Quantize a model's convolutions and matrix products.

    Args:
        model: an ``openvino.Model`` with one input; it stays as it is.
        calibration: inputs like those to come, float32 (N, channels, height, width).
        goal: if given, layers are taken back one after another, those first that change the
            outputs most, until the goal is reached.

    Returns:
        A new ``openvino.Model``, quantized to int8.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    import nncf

    nncf.set_log_level(logging.ERROR)
    dataset = _rows_of(calibration)
    preset = nncf.QuantizationPreset.MIXED
    if goal is None:
        return nncf.quantize(model, dataset, preset=preset, subset_size=len(calibration))
    validation = _rows_of(goal.inputs)

    deadline = time.monotonic() + _MAX_RESTORING_SECONDS

    def validate(compiled: Any, rows: Iterable[int]) -> tuple[float, list[float]]:
        """Return 1 - loss, or for a part of the inputs 1 - mean change, and each row's change."""
        if time.monotonic() > deadline:
            raise NotCompiled(
                f"after {_MAX_RESTORING_SECONDS} s too few of its layers were taken back for its "
                "answers to be right"
            )
        rows = list(rows)
        outputs = np.concatenate(
            [compiled(each)[0] for each in validation.get_inference_data(rows)]
        )
        changes = goal.changes(rows, torch.from_numpy(outputs))
        is_part = len(rows) < len(goal.inputs)
        loss = float(changes.mean()) if is_part else goal.loss(torch.from_numpy(outputs))
        return 1 - loss, changes.tolist()

    # With a metric for each row NNCF takes back the layer whose return helps most. Were outputs
    # returned instead, NNCF 3.4 would begin with the layer whose return helps least.
    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=dataset,
        validation_dataset=validation,
        validation_fn=validate,
        # The saved model itself has a loss of 0, or nearly.
        max_drop=goal.max_loss,
        preset=preset,
        subset_size=len(calibration),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=_MAX_RESTORED_GROUPS, ranking_subset_size=_NUM_RANKING_INPUTS
        ),
    )


def _rows_of(inputs: Tensor) -> Any:
    """Make an ``nncf.Dataset`` whose items are row numbers."""
    import nncf

    return nncf.Dataset(range(len(inputs)), lambda row: inputs[row : row + 1].numpy())
