"""A member's `postprocess`: a function of the user's own, from a network's outputs to scores.

It runs after the network, whichever way that is computed (eager, TorchScript, exported, ONNX or
compiled), and never becomes part of a compiled library. Members with such a function are not fused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import MemberError
from ..base.own_code import OwnFunction
from ..base.tasks import Task
from ..spec import EnsembleSpec, Member


@dataclass(frozen=True)
class Postprocess:
    """Calls the function, and checks what it returned.

    Attributes:
        function: the user's own.
        allowed_columns: numbers of outputs that fit the spec's labels.
    """

    function: OwnFunction
    allowed_columns: tuple[int, ...]

    def __call__(self, raw: Any, num_samples: int, device: torch.device) -> Tensor:
        """Convert what a network returned to outputs, one for each label.

        Args:
            raw: what the network returned for the samples. Its half-precision tensors are converted
                to float32 for the function, wherever they stand in lists, tuples and dicts.
            num_samples: N, the number of samples.
            device: the device of the result.

        Returns:
            float32 (N, outputs) on the device.

        Raises:
            MemberError: the function failed, or returned something other than such a tensor.
        """
        try:
            result = self.function.function(_with_float32(raw))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise MemberError(f"postprocess {self.function.failure(error)}") from error
        if not isinstance(result, Tensor):
            raise self._wrong(type(result).__name__)
        if not result.is_floating_point():
            raise self._wrong(f"numbers of {result.dtype}")
        outputs = result.to(device, torch.float32)
        outputs = outputs.unsqueeze(1) if outputs.dim() == 1 else outputs
        if tuple(outputs.shape) not in {(num_samples, count) for count in self.allowed_columns}:
            raise self._wrong(f"the shape {tuple(result.shape)} for {num_samples} samples")
        return outputs

    def _wrong(self, result: str) -> MemberError:
        columns = " or ".join(map(str, self.allowed_columns))
        return MemberError(
            f"postprocess {self.function.name} returned {result}; it must return a float tensor of "
            f"shape (N, {columns}): one score for each label"
        )


def load_postprocess(spec: EnsembleSpec, member: Member, folder: Path) -> Postprocess | None:
    """Load the function that a member names; None if it names none.

    Args:
        spec: the ensemble.
        member: the member's part of the spec.
        folder: contains the files that the spec names.

    Raises:
        MemberError: the file cannot be imported, or the function does not exist.
    """
    if member.postprocess is None:
        return None
    return Postprocess(OwnFunction.load(folder, member.postprocess), allowed_columns(spec))


def allowed_columns(spec: EnsembleSpec) -> tuple[int, ...]:
    """Return the numbers of outputs that fit the spec's labels; a presence member may have two."""
    columns = len(spec.score_labels)
    return (columns, 2) if spec.task is Task.PRESENCE else (columns,)


def _with_float32(value: Any) -> Any:
    """Convert half-precision tensors to float32, in dicts, lists and (named) tuples too."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if type(value) in (dict, OrderedDict):
        return {key: _with_float32(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_with_float32, value))
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_with_float32, value))
    return value
