"""Gives a loaded member the memory layout and the precision in which it computes faster.

The choice depends on the member, the spec and the device alone, never on a measurement, so that two
workers of one archive on equal machines give equal answers.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import MemberError
from ..spec import EnsembleSpec, Member, Precision
from .full_float32 import full_float32
from .loading import LoadedMember, difference

logger = logging.getLogger(__name__)

_MIN_PARAMETERS_TO_ACCELERATE = 200_000
"""With fewer parameters neither memory layout nor precision makes a member faster."""

_MAX_DIFFERENCE = 1e-4
"""Largest difference, relative and absolute, of a raw output that counts as rounding."""


@full_float32()
@torch.inference_mode()
def accelerate(
    loaded: LoadedMember, spec: EnsembleSpec, member: Member, batch: Tensor
) -> LoadedMember:
    """Give a member the memory layout and precision that make it faster and keep its answers.

    Convolutional modules run with channels last. Unless ``runtime.precision`` is float32, matrix
    products and convolutions may run in bfloat16 (`torch.autocast`); weights and results stay
    float32.

    Args:
        loaded: the member as it was loaded.
        spec: the ensemble.
        member: the member's part of the spec.
        batch: float32 (N, channels, height, width), on which its answers are compared.

    Raises:
        MemberError: ``runtime.precision`` is bfloat16, which changes the member's answers by more
            than ``runtime.tolerance``.
    """
    if not isinstance(loaded.module, nn.Module) or isinstance(
        loaded.module, torch.jit.ScriptModule
    ):
        return loaded
    result = loaded
    if _is_convolutional(loaded.module):
        result = _with_channels_last(loaded, loaded.module, batch)
    precision = spec.runtime.precision
    if not wants_bfloat16(spec, loaded.module, batch.device):
        return result
    reduced = _with_bfloat16(result, batch.device)
    changed = difference(loaded(batch), reduced(batch), spec, member)
    if changed <= spec.runtime.tolerance:
        logger.info("member %s runs in bfloat16 (differs by %.1e)", loaded.name, changed)
        return reduced
    message = (
        f"member '{loaded.name}': in bfloat16 its answers differ by {changed:.1e} from float32, "
        f"more than {spec.runtime.tolerance:g}"
    )
    if precision is Precision.BFLOAT16:
        raise MemberError(
            f"{message}; set runtime.precision to float32 or auto, or tolerance to more"
        )
    logger.warning("%s; it runs in float32", message)
    return result


def wants_bfloat16(spec: EnsembleSpec, module: nn.Module, device: torch.device) -> bool:
    """Return whether the spec asks for bfloat16 in a member, provided that its answers allow it.

    Args:
        spec: the ensemble.
        module: the member's torch module.
        device: where the member runs.
    """
    if spec.runtime.precision in (Precision.AUTO, Precision.INT8):
        return is_bfloat16_fast(device) and is_large(module)
    return spec.runtime.precision is Precision.BFLOAT16


def is_large(module: nn.Module) -> bool:
    """Return whether a member is so large that its arithmetic dominates the calls around it."""
    return (
        sum(parameter.numel() for parameter in module.parameters()) >= _MIN_PARAMETERS_TO_ACCELERATE
    )


def _is_convolutional(module: nn.Module) -> bool:
    """Return whether the convolutions of a module have so many weights that they dominate."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return sum(layer.weight.numel() for layer in layers) >= _MIN_PARAMETERS_TO_ACCELERATE


def is_bfloat16_fast(device: torch.device) -> bool:
    """Return whether a device computes faster in bfloat16 than in float32, and not merely can."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _with_channels_last(loaded: LoadedMember, module: nn.Module, batch: Tensor) -> LoadedMember:
    """Give a member channels last; return it unchanged if it then fails or answers differently."""
    expected = loaded(batch)
    module.to(memory_format=torch.channels_last)

    def forward(inputs: Tensor) -> Tensor:
        result: Tensor = module(inputs.contiguous(memory_format=torch.channels_last))
        return result

    changed = replace(loaded, forward=forward)
    try:
        if torch.allclose(changed(batch), expected, rtol=_MAX_DIFFERENCE, atol=_MAX_DIFFERENCE):
            return changed
        reason = "its answers change"
    except RuntimeError as error:
        # E.g. a member calls x.view(...), which needs the other layout; x.flatten(...) does not.
        reason = str(error)
    module.to(memory_format=torch.contiguous_format)
    logger.info("member %s keeps its memory layout: %s", loaded.name, reason)
    return loaded


def _with_bfloat16(loaded: LoadedMember, device: torch.device) -> LoadedMember:
    """Return the member as a function that computes in bfloat16 where torch.autocast allows it."""
    inner = loaded.forward

    def forward(inputs: Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return inner(inputs)

    return replace(loaded, forward=forward)
