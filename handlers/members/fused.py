"""Fuses small members of one architecture, so that one call computes all of them.

A small member's time is mostly the cost of calling it. The weights of the members are stacked, and
`torch.vmap` maps one member's program over them, so that the cost is paid once. Source: the model
ensembling of torch.func (``stack_module_state``).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..spec import EnsembleSpec
from .executable import UNLIMITED
from .full_float32 import full_float32
from .loading import LoadedMember

logger = logging.getLogger(__name__)

_MAX_PARAMETERS_TO_FUSE = 1_000_000
"""Fusing pays for members so small that Python's call overhead dominates; above this many
parameters the arithmetic does."""

_MAX_SAMPLES_TO_FUSE_ON_CPU = 32
"""Above this many samples the arithmetic dominates on a CPU, however small the members are."""

_MAX_DIFFERENCE = 1e-4
"""Largest difference, relative and absolute, of a raw output that counts as rounding."""


@dataclass(frozen=True, eq=False)
class FusedMembers:
    """Runs small members of one architecture in one call, on their stacked weights.

    Attributes:
        members: positions of the members in the ensemble.
        module: the members' common program; its own weights are not used.
        state: name of a weight -> the weights of all members, (M members, ...).
    """

    members: tuple[int, ...]
    module: nn.Module
    state: Mapping[str, Tensor]
    concurrent: ClassVar[bool] = False
    uses_all_threads: ClassVar[bool] = False
    max_batch_size: ClassVar[int] = UNLIMITED

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.state.values())).device

    def pays_for(self, num_samples: int) -> bool:
        """Return whether it computes so many samples faster than its members run one by one."""
        return self.device.type != "cpu" or num_samples <= _MAX_SAMPLES_TO_FUSE_ON_CPU

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute raw outputs, float32 (M members, N samples, outputs)."""

        def one_member(state: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = functional_call(self.module, state, (batch,))
            return outputs

        raw: Tensor = torch.vmap(one_member)(dict(self.state))
        return raw.float()


def fuse_members(
    spec: EnsembleSpec,
    loaded: Mapping[int, LoadedMember],
    group_of_member: Sequence[int],
    inputs_of_member: Sequence[Tensor],
) -> list[FusedMembers]:
    """Fuse members, after checking that they give the same outputs as one by one.

    Args:
        spec: the ensemble.
        loaded: position -> member, ready to run, of the members that may be fused.
        group_of_member: for each member the position of its preprocessing.
        inputs_of_member: for each member the example inputs, float32 (N, channels, height, width).
    """
    result = []
    for positions in fusible_members(spec, loaded, group_of_member):
        fused = fuse(positions, loaded)
        if fused is not None and _answers_agree(fused, loaded, inputs_of_member[positions[0]]):
            _share_weights(fused, loaded)
            logger.info("%d members of one architecture run fused", len(positions))
            result.append(fused)
    return result


def fusible_members(
    spec: EnsembleSpec, loaded: Mapping[int, LoadedMember], group_of_member: Sequence[int]
) -> list[tuple[int, ...]]:
    """Find small members that have one architecture and one preprocessing.

    Args:
        spec: the ensemble.
        loaded: position -> member.
        group_of_member: for each member the position of its preprocessing.

    Returns:
        Groups of two or more positions.
    """
    groups: dict[object, list[int]] = {}
    for position, each in loaded.items():
        module = each.module
        # A member that was accelerated, or that has a postprocess, computes more than its module.
        if not isinstance(module, nn.Module) or each.forward is not module or each.postprocess:
            continue
        if sum(weight.numel() for weight in module.parameters()) > _MAX_PARAMETERS_TO_FUSE:
            continue
        member = spec.members[position]
        architecture = (
            type(module),
            str(module),
            member.architecture,
            str(member.arguments),
            spec.output_of(member),
            group_of_member[position],
            tuple((name, value.shape) for name, value in module.state_dict().items()),
        )
        groups.setdefault(architecture, []).append(position)
    return [tuple(positions) for positions in groups.values() if len(positions) > 1]


def fuse(positions: tuple[int, ...], loaded: Mapping[int, LoadedMember]) -> FusedMembers | None:
    """Stack the weights of some members; return None if that is not possible.

    Args:
        positions: positions of the members in the ensemble.
        loaded: position -> member.
    """
    modules = _modules(positions, loaded)
    if isinstance(modules[0], torch.jit.ScriptModule):
        return None
    try:
        parameters, buffers = stack_module_state(modules)
    except RuntimeError as error:
        logger.info("members of one architecture run one by one: %s", error)
        return None
    state = {name: value.detach() for name, value in (parameters | buffers).items()}
    if not state:
        return None
    return FusedMembers(positions, copy.deepcopy(modules[0]).to("meta"), state)


@full_float32()
@torch.inference_mode()
def _answers_agree(fused: FusedMembers, loaded: Mapping[int, LoadedMember], batch: Tensor) -> bool:
    """Return whether fused members give the same outputs as one by one."""
    expected = torch.stack([loaded[position](batch) for position in fused.members])
    try:
        agree = torch.allclose(fused(batch), expected, rtol=_MAX_DIFFERENCE, atol=_MAX_DIFFERENCE)
        reason = "their answers change"
    except Exception as error:
        # For example a branch on a value, which torch.vmap does not support.
        agree, reason = False, str(error)
    if not agree:
        logger.info("members of one architecture run one by one: %s", reason)
    return agree


def _modules(positions: Iterable[int], loaded: Mapping[int, LoadedMember]) -> list[nn.Module]:
    """Return the torch modules of some members."""
    modules = (loaded[position].module for position in positions)
    return [module for module in modules if module is not None]


def _share_weights(fused: FusedMembers, loaded: Mapping[int, LoadedMember]) -> None:
    """Let the single members use the stacked weights, so that they are in memory once."""
    for row, module in enumerate(_modules(fused.members, loaded)):
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            value.data = fused.state[name][row]
