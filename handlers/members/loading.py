"""Loads a member from its weights and architecture, and checks its outputs against the spec."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import MemberError
from ..base.tasks import Task
from ..spec import EnsembleSpec, Member, Output, WeightsFormat
from .architecture import build_architecture
from .full_float32 import full_float32
from .postprocessing import Postprocess, allowed_columns, load_postprocess
from .self_contained_formats import load_exported, load_onnx, load_torchscript
from .state_dict import load_weights

__all__ = [
    "LoadedMember",
    "as_outputs",
    "build_architecture",
    "check_member",
    "difference",
    "load_member",
    "score_changes",
    "scores",
]

logger = logging.getLogger(__name__)

# The outputs for a sample may differ slightly between batch sizes, because libraries choose other
# kernels for other batch sizes.
_RELATIVE_TOLERANCE = 1e-2
_ABSOLUTE_TOLERANCE = 1e-3

_PROBABILITY_TOLERANCE = 1e-3
"""By how much probabilities may lie outside 0 to 1, and their sum may differ from 1."""

_LFS_POINTER = b"version https://git-lfs"
"""The bytes with which the file begins that Git LFS puts in place of a large file."""


@dataclass(frozen=True)
class LoadedMember:
    """A member that is loaded on its device and can be called like a function.

    Attributes:
        name: the member's name in the spec.
        forward: function from float32 (N, channels, height, width) to float (N, outputs) or (N,);
            to anything that `postprocess` takes, if there is one.
        module: the torch module that `forward` runs; None if the member is not a torch module.
        postprocess: converts what `forward` returns to outputs.
    """

    name: str
    forward: Callable[[Tensor], Any]
    module: nn.Module | None
    postprocess: Postprocess | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute the raw outputs of a batch, float32 (N, outputs).

        Raises:
            MemberError: `forward` returns something other than one tensor, or `postprocess` fails.
        """
        raw = self.forward(batch)
        if self.postprocess is not None:
            return self.postprocess(raw, len(batch), batch.device)
        if not isinstance(raw, Tensor):
            raise MemberError(
                f"member '{self.name}': forward gave {type(raw).__name__}, not one tensor; set "
                "postprocess: FILE.py:FUNCTION, which takes that and returns the logits alone"
            )
        return as_outputs(raw)


def as_outputs(raw: Tensor) -> Tensor:
    """Convert the tensor that a member returned, (N, outputs) or (N,), to float32 (N, outputs)."""
    raw = raw.float()
    return raw.unsqueeze(1) if raw.dim() == 1 else raw


def load_member(
    spec: EnsembleSpec, member: Member, folder: Path, device: torch.device
) -> LoadedMember:
    """Load one member to the device, in evaluation mode and without gradients.

    Args:
        spec: the ensemble.
        member: the member to load, one of the ensemble's.
        folder: folder that the paths in the spec are relative to.
        device: device that the member will run on.

    Raises:
        MemberError: the member cannot be loaded; the message names the member, the file, the cause
            and the remedy.
        torch.OutOfMemoryError: the device has too little memory for the member.
    """
    where = f"ensemble '{spec.name}', member '{member.name}'"
    path = folder / member.weights
    try:
        _check_file(path)
        loaded = _load(member, path, folder, device)
        postprocess = load_postprocess(spec, member, folder)
    except torch.OutOfMemoryError:
        raise
    except MemberError as error:
        named = MemberError(f"{where}: {error}")
        named.place = ("members", member.name, *(error.place or ("weights",)))
        raise named from error
    except Exception as error:
        raise MemberError(
            f"{where}: {member.weights} cannot be loaded as {member.weights_format} "
            f"({_first_line(error)}); check that the file is whole and format is right"
        ) from error
    if isinstance(loaded, nn.Module):
        # Each parameter is set by itself, because a TorchScript module has no requires_grad_.
        for parameter in loaded.parameters():
            parameter.requires_grad_(False)
        return LoadedMember(member.name, loaded, loaded, postprocess)
    return LoadedMember(member.name, loaded, None, postprocess)


def scores(
    raw: Tensor, task: Task, output: Output, temperature: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Convert raw outputs to scores.

    Classification: ``softmax(raw / temperature)`` (temperature scaling: Guo et al. 2017). Presence
    and multilabel: ``sigmoid(raw / temperature)``; a presence member with two outputs, [absent,
    present], gives the softmax's second column, which is the sigmoid of their difference.
    Outputs that are probabilities or values already are the scores.

    Args:
        raw: raw outputs, float32 (N, outputs) of one member or (M, N, outputs) of M members.
        task: the ensemble's kind of answer.
        output: whether the raw outputs are logits, probabilities or values.
        temperature: number that the logits are divided by; a tensor (M, 1, 1) for M members.

    Returns:
        Scores, float32 (..., N, C score labels), and the logits that they were computed from; the
        logits are None if the raw outputs are not logits.
    """
    two_columns = task is Task.PRESENCE and raw.shape[-1] == 2
    if output is not Output.LOGITS:
        return (raw[..., 1:] if two_columns else raw), None
    logits = (raw[..., 1:] - raw[..., :1] if two_columns else raw) / temperature
    if task is Task.CLASSIFICATION:
        return logits.softmax(dim=-1), logits
    return logits.sigmoid(), logits


def difference(first: Tensor, second: Tensor, spec: EnsembleSpec, member: Member) -> float:
    """Return the largest of the `score_changes`."""
    return float(score_changes(first, second, spec, member).max())


def score_changes(first: Tensor, second: Tensor, spec: EnsembleSpec, member: Member) -> Tensor:
    """Compute each sample's largest difference between the scores of two ways to run a member.

    Regression values have no fixed scale, so their difference is divided by the largest absolute
    value, or by 1 if that is smaller.

    Args:
        first: raw outputs of the member, float32 (N, outputs).
        second: the member's raw outputs for the same samples, computed in another way.
        spec: the ensemble.
        member: the member's part of the spec.

    Returns:
        (N,) differences; NaN for a sample with a score that is NaN.
    """
    output = spec.output_of(member)
    one, other = (scores(raw, spec.task, output, member.temperature)[0] for raw in (first, second))
    scale = float(one.abs().max().clamp(min=1.0)) if spec.task is Task.REGRESSION else 1.0
    return (one - other).abs().amax(dim=1) / scale


@full_float32()
@torch.inference_mode()
def check_member(loaded: LoadedMember, spec: EnsembleSpec, member: Member, batch: Tensor) -> None:
    """Run a member on batches of 3, 2 and 1 samples, and check its outputs against the spec.

    Args:
        loaded: the member to check.
        spec: the ensemble.
        member: the member's part of the spec.
        batch: three different samples, float32 (3, channels, height, width).

    Raises:
        MemberError: the member fails, or gives another number of outputs than the spec's labels
            need, numbers that are not finite, numbers outside 0 to 1 where the spec says
            probabilities, or answers that depend on the other samples of the batch.
        torch.OutOfMemoryError: the device has too little memory for the member's activations.
    """
    where = f"ensemble '{spec.name}', member '{loaded.name}' ({member.weights})"
    together, pair, alone = _run_in_sizes(loaded, where, [batch, batch[:2], batch[2:]])
    _check_shapes(where, spec, [together, pair, alone])
    if not together.isfinite().all():
        also = "" if member.postprocess is None else f", or {member.postprocess} divides by zero"
        raise MemberError(
            f"{where} gives numbers that are not finite: its weights are damaged, or its "
            f"preprocessing is not the one that it was trained with{also}"
        )
    output = spec.output_of(member)
    lowest, highest = -_PROBABILITY_TOLERANCE, 1 + _PROBABILITY_TOLERANCE
    in_unit_interval = bool(((together >= lowest) & (together <= highest)).all())
    if output is Output.PROBABILITIES and not in_unit_interval:
        raise MemberError(
            f"{where} gives numbers outside 0 to 1, which are no probabilities: set output: logits"
        )
    if (
        output is Output.LOGITS
        and spec.task is Task.CLASSIFICATION
        and in_unit_interval
        and bool(((together.sum(dim=1) - 1).abs() < _PROBABILITY_TOLERANCE).all())
    ):
        logger.warning(
            "%s gives numbers that look like probabilities, yet its output is logits and they "
            "will pass through a softmax again: set output: probabilities",
            where,
        )
    if not torch.allclose(
        together, torch.cat([pair, alone]), rtol=_RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE
    ):
        raise MemberError(
            f"{where} answers a sample differently alone and among others: it was saved in "
            "training mode (call model.eval() before exporting), or mixes the samples of a batch"
        )


def _load(
    member: Member, path: Path, folder: Path, device: torch.device
) -> nn.Module | Callable[[Tensor], Any]:
    """Load a weights file with the loader of its format."""
    match member.weights_format:
        case WeightsFormat.SAFETENSORS | WeightsFormat.STATE_DICT:
            return load_weights(member, path, folder, device)
        case WeightsFormat.TORCHSCRIPT:
            return load_torchscript(path, device)
        case WeightsFormat.EXPORTED:
            return load_exported(path, device)
        case WeightsFormat.ONNX:
            return load_onnx(path, device, several_outputs=member.postprocess is not None)


def _check_file(path: Path) -> None:
    """Check that a weights file can be read, is not empty and is not a pointer of Git LFS.

    Raises:
        MemberError: the file fails the check.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise MemberError(
            f"{path} cannot be read ({error.strerror}); name the weights relative to the spec"
        ) from error
    if not start:
        raise MemberError(f"{path} is empty; write or copy it again")
    if start == _LFS_POINTER:
        raise MemberError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull")


def _run_in_sizes(loaded: LoadedMember, where: str, batches: list[Tensor]) -> list[Tensor]:
    """Run a member on several batches and return its outputs.

    Raises:
        MemberError: a batch failed; the message says whether the batch size is the cause.
    """
    outputs: list[Tensor] = []
    failures: list[tuple[Tensor, Exception]] = []
    for batch in batches:
        try:
            outputs.append(loaded(batch))
        except torch.OutOfMemoryError:
            raise
        except MemberError as error:
            raise MemberError(f"{where}: {error}") from error
        except Exception as error:
            failures.append((batch, error))
    if not failures:
        return outputs
    batch, cause = failures[0]
    failed = f"{where} fails on a batch of {tuple(batch.shape)} ({_first_line(cause)})"
    if not outputs:
        raise MemberError(
            f"{failed}: compare its preprocessing (channels, height, width) with what it was made "
            "for; a TorchScript, exported or ONNX member must also have a dynamic batch dimension"
        ) from cause
    raise MemberError(
        f"{failed}, but not on other numbers of samples: "
        + (
            "it was saved in training mode (call model.eval() before exporting)"
            if "training" in str(cause)
            else "its batch dimension is fixed; export it with a dynamic one, "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    ) from cause


def _check_shapes(where: str, spec: EnsembleSpec, outputs: list[Tensor]) -> None:
    """Check that the outputs for 3, 2 and 1 samples have one column for each score label.

    A presence member may have two columns instead, [absent, present].

    Raises:
        MemberError: an output has another shape.
    """
    columns = allowed_columns(spec)
    for num_samples, output in zip((3, 2, 1), outputs, strict=True):
        if output.dim() != 2 or len(output) != num_samples or output.shape[1] not in columns:
            expected = " or ".join(f"({num_samples}, {count})" for count in columns)
            mismatch = MemberError(
                f"{where} gives {tuple(output.shape)} for {num_samples} samples, where the spec's "
                f"labels ask for {expected}: correct the labels, or the number of outputs"
            )
            mismatch.place = ("labels",)
            raise mismatch


def _first_line(error: Exception) -> str:
    """Return the class name of an error, and the first line of its message if it has one."""
    (line, *_) = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
