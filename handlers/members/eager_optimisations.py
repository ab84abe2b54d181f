"""Choose the memory layout and the precision that a loaded member computes with.

The choice depends on the member, the spec and the device alone, never on a measurement, so that two
workers of one archive on equal machines give equal answers.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..base.errors import MemberError
from ..spec import EnsembleSpec, Member, Precision
from .loading import LoadedMember, difference

logger = logging.getLogger(__name__)

# Below this many parameters neither memory layout nor precision makes a member faster.
_MIN_PARAMETERS_TO_OPTIMISE = 200_000
# Relative and absolute tolerance between the outputs in the two memory layouts.
_LAYOUT_TOLERANCE = 1e-4


@torch.inference_mode()
def accelerate(
    loaded: LoadedMember, spec: EnsembleSpec, member: Member, batch: Tensor
) -> LoadedMember:
    """Give a member a faster memory layout and precision where its scores stay within tolerance.

    Convolutional modules run in the channels-last layout. With ``runtime.precision: auto`` or
    ``bfloat16``, matrix products and convolutions run in bfloat16 (`torch.autocast`), while weights
    and results stay float32.

    Args:
        loaded: the member as `load_member` returned it.
        spec: the ensemble.
        member: the member's part of the spec.
        batch: example inputs to compare the outputs on, float32 (N, channels, height, width).

    Raises:
        MemberError: the spec sets ``bfloat16``, which changes the member's scores by more than the
            tolerance.
    """
    if not isinstance(loaded.module, nn.Module) or isinstance(
        loaded.module, torch.jit.ScriptModule
    ):
        return loaded
    optimised = loaded
    if _is_convolutional(loaded.module):
        optimised = _with_channels_last(loaded, loaded.module, batch)
    if not wants_bfloat16(spec, loaded.module, batch.device):
        return optimised
    reduced = _with_bfloat16(optimised, batch.device)
    changed = difference(loaded(batch), reduced(batch), spec, member)
    if changed <= spec.runtime.tolerance:
        logger.info("member %s runs in bfloat16 (differs by %.1e)", loaded.name, changed)
        return reduced
    message = (
        f"member '{loaded.name}': in bfloat16 its answers differ by {changed:.1e} from float32, "
        f"more than {spec.runtime.tolerance:g}"
    )
    if spec.runtime.precision is Precision.BFLOAT16:
        raise MemberError(
            f"{message}; set runtime.precision to float32 or auto, or tolerance to more"
        )
    logger.warning("%s; it runs in float32", message)
    return optimised


def wants_bfloat16(spec: EnsembleSpec, module: nn.Module, device: torch.device) -> bool:
    """Whether to try bfloat16 for a member; the caller checks that its scores stay close."""
    if spec.runtime.precision in (Precision.AUTO, Precision.INT8):
        return is_bfloat16_fast(device) and is_large(module)
    return spec.runtime.precision is Precision.BFLOAT16


def is_large(module: nn.Module) -> bool:
    """Whether a module's arithmetic takes longer than the overhead of Python's calls."""
    return (
        sum(parameter.numel() for parameter in module.parameters()) >= _MIN_PARAMETERS_TO_OPTIMISE
    )


def _is_convolutional(module: nn.Module) -> bool:
    weights = [m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d)]
    return sum(weights) >= _MIN_PARAMETERS_TO_OPTIMISE


def is_bfloat16_fast(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16 than in float32, rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _with_channels_last(loaded: LoadedMember, module: nn.Module, batch: Tensor) -> LoadedMember:
    expected = loaded(batch)
    module.to(memory_format=torch.channels_last)

    def forward(inputs: Tensor) -> Tensor:
        result: Tensor = module(inputs.contiguous(memory_format=torch.channels_last))
        return result

    changed = replace(loaded, forward=forward)
    try:
        if torch.allclose(changed(batch), expected, rtol=_LAYOUT_TOLERANCE, atol=_LAYOUT_TOLERANCE):
            return changed
        reason = "its answers change"
    except RuntimeError as error:
        # For example x.view(...) needs contiguous memory, while x.flatten(...) does not.
        reason = str(error)
    module.to(memory_format=torch.contiguous_format)
    logger.info("member %s keeps its memory layout: %s", loaded.name, reason)
    return loaded


def _with_bfloat16(loaded: LoadedMember, device: torch.device) -> LoadedMember:
    inner = loaded.forward

    def forward(inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return inner(inputs)

    return replace(loaded, forward=forward)
