"""Quantizes members to int8: weights and activations, calibrated on sample images.

This is static post-training quantization by torchao's PT2E for x86 processors. Each output channel
of the weights has its own scale. The scale of an activation comes from the range of values that it
takes on the sample images.
"""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor, nn

from ..handlers.base.errors import ArchiveError

_CALIBRATION_BATCH_SIZE = 8

MIN_CALIBRATION_SAMPLES = 8
"""Smallest number of sample images; fewer do not show the range of the activations."""


def require_quantization(num_samples: int) -> None:
    """Check that this machine and the sample images allow `quantized` to work.

    Args:
        num_samples: number of images to calibrate on.

    Raises:
        ArchiveError: torchao is not installed, or there are too few images.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ArchiveError(
            "runtime.precision: int8 needs torchao on the build machine: "
            "pip install 'torchserve-ensemble[int8]'"
        )
    if num_samples < MIN_CALIBRATION_SAMPLES:
        raise ArchiveError(
            f"runtime.precision: int8 needs at least {MIN_CALIBRATION_SAMPLES} images like those "
            f"to come, on which it is calibrated, and there are {num_samples}: give a folder of "
            "them (--samples FOLDER)"
        )


def quantized(
    module: nn.Module, dynamic_shapes: object, example: Tensor, calibration: Tensor
) -> nn.Module:
    """Return a module of the same function with its convolutions and matrix products in int8.

    Args:
        module: the member's module as it was loaded, in evaluation mode.
        dynamic_shapes: the example's variable dimensions, as `torch.export.export` takes them.
        example: input to export the module with, float32 (N, channels, height, width).
        calibration: inputs like those to come, float32 (samples, channels, height, width).
    """
    with warnings.catch_warnings():
        # torchao warns about parts of itself when it is imported.
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

    program = torch.export.export(
        module, (example,), dynamic_shapes=dynamic_shapes, strict=True
    ).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    # AOTInductor has no int8 kernel for max pooling.
    quantizer.set_module_type_qconfig(nn.MaxPool2d, None)
    prepared = prepare_pt2e(program, quantizer)
    for batch in torch.split(calibration, _CALIBRATION_BATCH_SIZE):
        prepared(batch)
    converted: nn.Module = convert_pt2e(prepared)
    return converted
