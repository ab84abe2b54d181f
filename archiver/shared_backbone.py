"""Finds members that share a backbone, and joins them so that it is computed only once.

Weights are compared by their contents, so it does not matter how equal weights came into different
files. In the joined module equal weights are one tensor. The compiler then finds the operations
that several members have in common, and keeps one of each.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..handlers.members.loading import LoadedMember
from ..handlers.spec import EnsembleSpec

_MIN_SHARED_FRACTION = 0.5
"""Fraction of a member's bytes that must be shared to be worth one more compiled library."""


@dataclass
class _Group:
    """Members of one preprocessing and one kind of output that share a backbone.

    Attributes:
        kind: preprocessing and kind of output, which are equal for all members of the group.
        bytes_by_digest: digest of each weight of the first member -> its size in bytes.
        positions: positions of the members in the ensemble.
    """

    kind: object
    bytes_by_digest: dict[str, int]
    positions: list[int]


def groups_with_shared_backbone(
    spec: EnsembleSpec, loaded: Sequence[LoadedMember], group_of_member: Sequence[int]
) -> list[tuple[int, ...]]:
    """Find groups of members that share a preprocessing and at least half of their weights' bytes.

    Args:
        spec: the ensemble.
        loaded: the ensemble's members. Those without a module that can be exported are left out.
        group_of_member: for each member the position of its preprocessing.

    Returns:
        For each group of at least two members, their positions in the ensemble.
    """
    groups: list[_Group] = []
    for position, member in enumerate(loaded):
        if member.module is None or isinstance(member.module, torch.jit.ScriptModule):
            continue
        # The outputs of the joint program cannot pass through the members' own functions.
        if member.postprocess is not None:
            continue
        kind = (group_of_member[position], spec.output_of(spec.members[position]))
        bytes_by_digest = _bytes_by_digest(member.module)
        for group in groups:
            if group.kind == kind and _share_backbone(bytes_by_digest, group.bytes_by_digest):
                group.positions.append(position)
                break
        else:
            groups.append(_Group(kind, bytes_by_digest, [position]))
    return [tuple(group.positions) for group in groups if len(group.positions) > 1]


class Joint(nn.Module):
    """Several members as one module: (N, channels, height, width) -> (M members, N, outputs)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Copy the members' modules, with one tensor in place of all weights of equal contents.

        Args:
            modules: the members' modules, which take the same input.
        """
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(module) for module in modules)
        tensor_by_digest: dict[str, Tensor] = {}
        for part in self.members.modules():
            for tensors in (part._parameters, part._buffers):
                tensor_by_name: dict[str, Any] = tensors
                for name, tensor in tensor_by_name.items():
                    if tensor is not None:
                        tensor_by_name[name] = tensor_by_digest.setdefault(_digest(tensor), tensor)

    def forward(self, batch: Tensor) -> Tensor:
        """Return the members' raw outputs for a batch."""
        return torch.stack([member(batch) for member in self.members])


def _bytes_by_digest(module: nn.Module) -> dict[str, int]:
    """Return the digest of each parameter and buffer of a module -> its size in bytes."""
    tensors = chain(module.parameters(), module.buffers())
    return {_digest(tensor): tensor.nbytes for tensor in tensors}


def _share_backbone(first: dict[str, int], second: dict[str, int]) -> bool:
    """Return whether two members have enough weights in common.

    Args:
        first: of one member, the digest of each weight -> its size in bytes.
        second: of the other member, the digest of each weight -> its size in bytes.
    """
    shared_bytes = sum(size for digest, size in first.items() if digest in second)
    larger_bytes = max(sum(first.values()), sum(second.values()), 1)
    return shared_bytes >= _MIN_SHARED_FRACTION * larger_bytes


def _digest(tensor: Tensor) -> str:
    """Return a text that is equal for tensors of equal contents, data type and shape alone."""
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{hashlib.sha256(raw.data).hexdigest()} {tensor.dtype} {tuple(tensor.shape)}"
