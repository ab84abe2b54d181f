"""Loads an executable for each member, and executables that compute several members at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..spec import EnsembleSpec
from .compiled import load_compiled
from .eager_optimisations import accelerate
from .executable import Executable, SingleMember
from .fused import fuse_members
from .loading import LoadedMember, check_member, load_member

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Executables:
    """Everything that can run the members of an ensemble.

    Attributes:
        single: for each member, in the spec's order, the executable that computes it alone.
        joint: executables of several members, the preferred ones first. If a batch cannot use one
            of them, the single executables compute its members.
    """

    single: Sequence[Executable]
    joint: Sequence[Executable] = ()


def load_executables(
    spec: EnsembleSpec,
    folder: Path,
    group_of_member: Sequence[int],
    example_inputs: Sequence[Tensor],
    device: torch.device,
    *,
    threads: int = 1,
    compiled: bool = False,
    side_by_side: Callable[[Sequence[float]], bool] = lambda seconds: True,
) -> Executables:
    """Load every member and run it once, so that a mistake shows before the first request.

    An executable that the build made is preferred to the saved members. A member for which the
    build made no executable of its own is loaded as it was saved. If no executable of the build
    computes such members together with others, small ones of one architecture are fused.

    Args:
        spec: the ensemble.
        folder: where the files that the spec names are.
        group_of_member: for each member the position of its preprocessing.
        example_inputs: for each preprocessing the example inputs, float32 (3, channels, height,
            width).
        device: where all members run.
        threads: number of threads that the worker has.
        compiled: whether to use the executables that the build put beside the spec.
        side_by_side: function from the seconds that each such executable takes for one sample to
            whether running them side by side, each on one thread, is faster.

    Raises:
        MemberError: a member's file, architecture or output does not fit the spec.
        ArchiveError: the record of compiled executables is damaged.
    """
    inputs_of_member = [example_inputs[group] for group in group_of_member]
    from_build = (
        load_compiled(spec, folder, inputs_of_member, device, threads, side_by_side)
        if compiled
        else []
    )
    single: dict[int, Executable] = {
        each.members[0]: each for each in from_build if len(each.members) == 1
    }
    joint: list[Executable] = [each for each in from_build if len(each.members) > 1]
    in_joint = {position for each in joint for position in each.members}
    fusible: dict[int, LoadedMember] = {}
    for position, inputs in enumerate(inputs_of_member):
        if position not in single:
            loaded = load_saved(spec, position, folder, inputs)
            single[position] = SingleMember(position, loaded)
            if position not in in_joint:
                fusible[position] = loaded
    joint += fuse_members(spec, fusible, group_of_member, inputs_of_member)
    return Executables([single[position] for position in range(len(spec.members))], joint)


def load_saved(spec: EnsembleSpec, position: int, folder: Path, inputs: Tensor) -> LoadedMember:
    """Load a member from its own weights, check its outputs, and make it faster where possible.

    Args:
        spec: the ensemble.
        position: position of the member in the ensemble.
        folder: where the files that the spec names are.
        inputs: example inputs, float32 (3, channels, height, width), on the member's device.

    Raises:
        MemberError: the member's file, architecture or output does not fit the spec.
    """
    member = spec.members[position]
    started = time.perf_counter()
    loaded = load_member(spec, member, folder, inputs.device)
    check_member(loaded, spec, member, inputs)
    loaded = accelerate(loaded, spec, member, inputs)
    logger.info(
        "member %s loaded on %s in %.0f ms",
        member.name,
        inputs.device,
        1000 * (time.perf_counter() - started),
    )
    return loaded
