"""Compares two weights files tensor by tensor, with one tensor of each in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..handlers.base.errors import MemberError
from ..handlers.members.state_dict import read_state_dict
from ..handlers.spec import WeightsFormat

COMPARED_FORMATS = frozenset({WeightsFormat.SAFETENSORS, WeightsFormat.STATE_DICT})
"""Formats whose tensors have names. Other files can only be equal or different."""

_ELEMENTS_AT_ONCE = 2**20
"""Elements that are compared in float64 at once: 8 MB for each of the two tensors."""


@dataclass(frozen=True)
class TensorChange:
    """A tensor that differs.

    Attributes:
        name: its name in the weights file.
        before: its type and shape in the first file, e.g. ``float32 [3, 16]``; None: it is new.
        after: its type and shape in the second file; None: it is gone.
        largest: the largest absolute change of an element; None if the shapes differ, or an
            element is not a finite number in one of the files alone.
        scale: the largest absolute value of an element in the first file, for comparison.
        changed: number of elements that changed; None if the shapes differ.
        elements: number of elements.
    """

    name: str
    before: str | None
    after: str | None
    largest: float | None = None
    scale: float | None = None
    changed: int | None = None
    elements: int | None = None


def tensor_changes(
    before: tuple[Path, WeightsFormat], after: tuple[Path, WeightsFormat]
) -> tuple[list[TensorChange], int]:
    """Compare two weights files.

    Args:
        before: the first file and its format, one of `COMPARED_FORMATS`.
        after: the second file and its format.

    Returns:
        The tensors that differ, those that changed most first, and the number of equal ones.

    Raises:
        MemberError: a file is damaged.
    """
    changes: list[TensorChange] = []
    num_equal = 0
    first, second = _readers(*before), _readers(*after)
    for name in dict.fromkeys([*first, *second]):
        change = _change(
            name,
            first[name]() if name in first else None,
            second[name]() if name in second else None,
        )
        if change is None:
            num_equal += 1
        else:
            changes.append(change)
    return sorted(changes, key=_by_size), num_equal


def _by_size(change: TensorChange) -> tuple[float, str]:
    return (-float("inf") if change.largest is None else -change.largest, change.name)


def _readers(path: Path, weights_format: WeightsFormat) -> Mapping[str, Callable[[], Tensor]]:
    """Return for each tensor of a weights file a function that reads it.

    Raises:
        MemberError: the file is damaged.
    """
    if weights_format is WeightsFormat.STATE_DICT:
        # Mapped into memory, so that a tensor is read when it is used.
        state = read_state_dict(weights_format, path)
        return {name: partial(state.__getitem__, name) for name in state}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: partial(_read_tensor, path, name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise MemberError(f"{path.name} is not a whole safetensors file ({error})") from error


def _read_tensor(path: Path, name: str) -> Tensor:
    # The file is opened for each tensor: while it is open, all pages that were read stay mapped.
    with safetensors.safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _change(name: str, before: Tensor | None, after: Tensor | None) -> TensorChange | None:
    kinds = (_kind(before), _kind(after))
    if before is None or after is None or before.shape != after.shape:
        return TensorChange(name, *kinds)
    if before.dtype == after.dtype and torch.equal(before, after):
        return None
    largest, scale, changed = 0.0, 0.0, 0
    first, second = before.reshape(-1), after.reshape(-1)
    for start in range(0, len(first), _ELEMENTS_AT_ONCE):
        one = _as_float64(first[start : start + _ELEMENTS_AT_ONCE])
        other = _as_float64(second[start : start + _ELEMENTS_AT_ONCE])
        scale = max(scale, float(one.abs().nan_to_num(nan=0.0, posinf=0.0).max()))
        if torch.equal(one, other):
            continue
        # NaN in the same place of both is no change, nor is infinity.
        differs = (one != other) & ~(one.isnan() & other.isnan())
        changed += int(differs.sum())
        difference = (one - other).abs().nan_to_num(nan=torch.inf).where(differs, 0.0)
        largest = max(largest, float(difference.max()))
    if not changed and kinds[0] == kinds[1]:
        return None
    finite = largest if largest < torch.inf else None
    return TensorChange(name, *kinds, finite, scale, changed, len(first))


def _as_float64(values: Tensor) -> Tensor:
    # Real and imaginary parts of complex numbers are compared one by one.
    return (torch.view_as_real(values).flatten() if values.is_complex() else values).double()


def _kind(tensor: Tensor | None) -> str | None:
    if tensor is None:
        return None
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
