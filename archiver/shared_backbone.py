"""Members that share a backbone, which then needs to be computed only once.

Weights are compared by content, so it does not matter how the files came to hold the same ones.
In the joint program equal weights are one tensor; the compiler then finds the operations that the
members have in common, and keeps one of each.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..handlers.members.loading import LoadedMember
from ..handlers.spec import EnsembleSpec

_SHARED = 0.5
"""Of a member's bytes: what makes it worth another library."""


def sharing(
    spec: EnsembleSpec, loaded: Sequence[LoadedMember], group_of_member: Sequence[int]
) -> list[tuple[int, ...]]:
    """Positions of members of one preprocessing with half of their weights in common.

    Args:
        spec: the ensemble.
        loaded: its members; those without a module that can be exported share with none.
        group_of_member: for each the position of its preprocessing.
    """
    groups: list[tuple[object, dict[str, int], list[int]]] = []
    for index, each in enumerate(loaded):
        if each.module is None or isinstance(each.module, torch.jit.ScriptModule):
            continue
        # The outputs of the joint program cannot pass through the members' own functions.
        if each.postprocess is not None:
            continue
        kind = (group_of_member[index], spec.output_of(spec.members[index]))
        weights = _bytes_by_content(each.module)
        for known, first, positions in groups:
            common = sum(size for digest, size in weights.items() if digest in first)
            if known == kind and common >= _SHARED * max(*map(_total, (weights, first)), 1):
                positions.append(index)
                break
        else:
            groups.append((kind, weights, [index]))
    return [tuple(positions) for _, _, positions in groups if len(positions) > 1]


class Joint(nn.Module):
    """Several members as one: (N, channels, height, width) -> (M members, N, outputs)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Copy them, with one tensor for all weights of the same contents."""
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(module) for module in modules)
        known: dict[str, Tensor] = {}
        for part in self.members.modules():
            for own in (part._parameters, part._buffers):
                values: dict[str, Any] = own
                for name, value in values.items():
                    if value is not None:
                        values[name] = known.setdefault(_digest(value), value)

    def forward(self, batch: Tensor) -> Tensor:
        """Raw outputs."""
        return torch.stack([member(batch) for member in self.members])


def _bytes_by_content(module: nn.Module) -> dict[str, int]:
    tensors = chain(module.parameters(), module.buffers())
    return {_digest(value): value.nbytes for value in tensors}


def _total(weights: dict[str, int]) -> int:
    return sum(weights.values())


def _digest(value: Tensor) -> str:
    raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{hashlib.sha256(raw.data).hexdigest()} {value.dtype} {tuple(value.shape)}"
