"""Members computed as one.

Small members of one architecture: their weights stacked, `torch.vmap` over them. A small member's
time is mostly the cost of calling it; the stack is called once for all. Source: torch.func's model
ensembling (``stack_module_state``).

Members that share a backbone, which the build compiled into one library.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..spec import EnsembleSpec
from .compiled import CompiledMembers
from .loading import LoadedMember

logger = logging.getLogger(__name__)

_SMALL = 1_000_000
"""Weights of a member, beyond which what it computes outweighs its calls."""

_FEW = 32
"""Samples on a CPU, beyond which the same holds."""

_SAME = 1e-4


@dataclass(frozen=True)
class Stack:
    """Members that run as one.

    Attributes:
        members: their positions in the ensemble.
        module: what they have in common; its own weights are not used.
        state: of each weight, those of all members: (M, ...).
        compiled: the same ahead of time (`handlers.compiled`).
    """

    members: tuple[int, ...]
    module: nn.Module
    state: dict[str, Tensor]
    compiled: Callable[[Tensor], Tensor] | None = None
    concurrent: ClassVar[bool] = False

    def __call__(self, batch: Tensor) -> Tensor:
        """Raw outputs, float32 (M members, N samples, outputs)."""
        return self.forward(batch) if self.compiled is None else self.compiled(batch)

    def forward(self, batch: Tensor) -> Tensor:
        """The same without the compiled form."""

        def one(state: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.module, state, (batch,))
            return found

        raw: Tensor = torch.vmap(one)(self.state)
        return raw.float()

    def suits(self, samples: int, device: torch.device) -> bool:
        """Whether it is faster than the members one by one."""
        return self.compiled is not None or device.type != "cpu" or samples <= _FEW


@dataclass(frozen=True)
class Trunk:
    """Members that share a backbone, compiled as one.

    Attributes:
        members: their positions in the ensemble.
        compiled: raw outputs, float32 (M members, N samples, outputs).
        concurrent: whether several threads may run it at the same time.
    """

    members: tuple[int, ...]
    compiled: Callable[[Tensor], Tensor]
    concurrent: bool

    def __call__(self, batch: Tensor) -> Tensor:
        """Raw outputs, float32 (M members, N samples, outputs)."""
        return self.compiled(batch)

    def suits(self, samples: int, device: torch.device) -> bool:
        """Whether it is faster than the members one by one."""
        return True


def find_trunks(
    spec: EnsembleSpec,
    group_of_member: Sequence[int],
    batches: Sequence[Tensor],
    compiled: CompiledMembers | None,
    threads: int,
) -> list[Trunk]:
    """The members that the build found to share a backbone.

    Args:
        spec: the ensemble.
        group_of_member: for each member the position of its preprocessing.
        batches: for each preprocessing the trial images.
        compiled: what was compiled ahead of time.
        threads: how many run a trunk at once.
    """
    if compiled is None:
        return []
    found = compiled.load_trunks(spec, group_of_member, batches, threads)
    on_cpu = batches[0].device.type == "cpu"
    return [Trunk(members, library, on_cpu) for members, library in found]


def find_stacks(
    spec: EnsembleSpec,
    members: Sequence[LoadedMember],
    group_of_member: Sequence[int],
    batches: Sequence[Tensor],
    compiled: CompiledMembers | None = None,
) -> list[Stack]:
    """The members that can run as one, checked to answer as they do alone.

    Args:
        spec: the ensemble.
        members: in its order, ready to run.
        group_of_member: for each the position of its preprocessing.
        batches: for each preprocessing the trial images.
        compiled: what was compiled ahead of time.
    """
    found = []
    for positions in alike(spec, members, group_of_member):
        stack = stack_of(positions, members)
        if stack is None:
            continue
        batch = batches[group_of_member[positions[0]]]
        if _answers_alike(stack, members, batch):
            _share_weights(stack, members)
            logger.info("%d members of one architecture run as one", len(positions))
            if compiled is not None:
                stacked = [spec.members[i] for i in positions]
                stack = replace(stack, compiled=compiled.load_stack(spec, stacked, batch))
            found.append(stack)
    return found


def alike(
    spec: EnsembleSpec, members: Sequence[LoadedMember], group_of_member: Sequence[int]
) -> list[tuple[int, ...]]:
    """Positions of small members of one architecture and one preprocessing, two or more each."""
    groups: dict[object, list[int]] = {}
    for index, (member, loaded) in enumerate(zip(spec.members, members, strict=True)):
        module = loaded.module
        # One that was accelerated runs something else than its module.
        if not isinstance(module, nn.Module) or loaded.forward is not module:
            continue
        if sum(parameter.numel() for parameter in module.parameters()) > _SMALL:
            continue
        described = (
            type(module),
            str(module),
            member.architecture,
            str(member.arguments),
            spec.output_of(member),
            group_of_member[index],
            tuple((name, value.shape) for name, value in module.state_dict().items()),
        )
        groups.setdefault(described, []).append(index)
    return [tuple(positions) for positions in groups.values() if len(positions) > 1]


def stack_of(positions: tuple[int, ...], members: Sequence[LoadedMember]) -> Stack | None:
    """Some members as one; None where their weights cannot be stacked."""
    modules = _modules(positions, members)
    if isinstance(modules[0], torch.jit.ScriptModule):
        return None
    try:
        parameters, buffers = stack_module_state(modules)
    except RuntimeError as error:
        logger.info("members of one architecture run one by one: %s", error)
        return None
    state = {name: value.detach() for name, value in (parameters | buffers).items()}
    return Stack(positions, copy.deepcopy(modules[0]).to("meta"), state)


@torch.inference_mode()
def _answers_alike(stack: Stack, members: Sequence[LoadedMember], batch: Tensor) -> bool:
    expected = torch.stack([members[i](batch) for i in stack.members])
    try:
        changed = not torch.allclose(stack(batch), expected, rtol=_SAME, atol=_SAME)
        reason = "their answers change"
    except Exception as error:
        # E.g. a branch on a value, which torch.vmap does not do.
        changed, reason = True, str(error)
    if changed:
        logger.info("members of one architecture run one by one: %s", reason)
    return not changed


def _modules(positions: Sequence[int], members: Sequence[LoadedMember]) -> list[nn.Module]:
    return [m.module for i in positions if (m := members[i]).module is not None]


def _share_weights(stack: Stack, members: Sequence[LoadedMember]) -> None:
    """Alone they run on the stack's memory, so that it is there once."""
    for row, module in enumerate(_modules(stack.members, members)):
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            value.data = stack.state[name][row]
