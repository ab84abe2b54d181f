"""Members in int8: weights and activations, calibrated on samples (static, post-training).

torchao's PT2E quantization for x86 processors: scales for each output channel of the weights, and
for each activation the range that the samples give it.
"""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor, nn

from ..handlers.base.errors import ArchiveError

_AT_ONCE = 8
LEAST_SAMPLES = 8
"""Fewer tell too little about the activations."""


def require_quantization(samples: int) -> None:
    """What `quantized` needs.

    Args:
        samples: how many there are to calibrate on.

    Raises:
        ArchiveError: torchao is missing, or there are too few samples.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ArchiveError(
            "runtime.precision: int8 needs torchao on the build machine: "
            "pip install 'torchserve-ensemble[int8]'"
        )
    if samples < LEAST_SAMPLES:
        raise ArchiveError(
            f"runtime.precision: int8 is calibrated on at least {LEAST_SAMPLES} images like those "
            f"to come, and there are {samples}: give a folder of them (--samples FOLDER)"
        )


def quantized(
    module: nn.Module, dynamic_shapes: object, example: Tensor, calibration: Tensor
) -> nn.Module:
    """The module with quantized convolutions and matrix products.

    Args:
        module: as it was loaded, in evaluation mode.
        dynamic_shapes: of the example, as `torch.export.export` takes them.
        example: float32 (N, channels, height, width).
        calibration: inputs like those to come, of the same shape but for N.
    """
    with warnings.catch_warnings():
        # Of torchao's own parts, on import.
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
    # AOTInductor has no int8 kernel of its own for it.
    quantizer.set_module_type_qconfig(nn.MaxPool2d, None)
    prepared = prepare_pt2e(program, quantizer)
    for part in torch.split(calibration, _AT_ONCE):
        prepared(part)
    converted: nn.Module = convert_pt2e(prepared)
    return converted
