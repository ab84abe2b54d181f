"""Loads a member from its weights and architecture, and checks what it computes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.errors import MemberError
from ..base.tasks import Task
from ..spec import EnsembleSpec, Member, Output, WeightsFormat
from .architecture import build_architecture
from .self_contained_formats import load_exported, load_onnx, load_torchscript
from .state_dict import load_weights

__all__ = [
    "LoadedMember",
    "as_outputs",
    "build_architecture",
    "check_member",
    "difference",
    "load_member",
    "scores",
]

logger = logging.getLogger(__name__)

# A member may answer a sample slightly differently alone and in a batch, because libraries choose
# other kernels for other batch sizes.
_RELATIVE_TOLERANCE = 1e-2
_ABSOLUTE_TOLERANCE = 1e-3
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class LoadedMember:
    """A member on its device, as a function.

    Attributes:
        name: the member's name in the spec.
        forward: float32 (N, channels, height, width) -> float (N, outputs), or (N,).
        module: the torch module that `forward` runs; None where it is not a torch module.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    module: nn.Module | None

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute raw outputs, float32 (N, outputs).

        Raises:
            MemberError: forward returns anything but one tensor.
        """
        raw = self.forward(batch)
        if not isinstance(raw, Tensor):
            raise MemberError(
                f"member '{self.name}': forward gave {type(raw).__name__}, not one tensor; wrap "
                "the model so that it returns its logits alone"
            )
        return as_outputs(raw)


def as_outputs(raw: Tensor) -> Tensor:
    """Bring what a member returned, (N, outputs) or (N,), to float32 (N, outputs)."""
    raw = raw.float()
    return raw.unsqueeze(1) if raw.dim() == 1 else raw


def load_member(
    spec: EnsembleSpec, member: Member, folder: Path, device: torch.device
) -> LoadedMember:
    """Load one member, ready to run: on the device, in evaluation mode, without gradients.

    Args:
        spec: the ensemble.
        member: one of its members.
        folder: where the files that the spec names are.
        device: where the member lives.

    Raises:
        MemberError: names the member, the file, the cause and the remedy.
        torch.OutOfMemoryError: the device has no room for it.
    """
    where = f"ensemble '{spec.name}', member '{member.name}'"
    path = folder / member.weights
    try:
        _check_file(path)
        loaded = _load(member, path, folder, device)
    except torch.OutOfMemoryError:
        raise
    except MemberError as error:
        raise MemberError(f"{where}: {error}") from error
    except Exception as error:
        raise MemberError(
            f"{where}: {member.weights} cannot be loaded as {member.weights_format} "
            f"({_first_line(error)}); check that the file is whole and format is right"
        ) from error
    if isinstance(loaded, nn.Module):
        # One by one: a TorchScript module has no requires_grad_ of its own.
        for parameter in loaded.parameters():
            parameter.requires_grad_(False)
        return LoadedMember(member.name, loaded, loaded)
    return LoadedMember(member.name, loaded, None)


def scores(
    raw: Tensor, task: Task, output: Output, temperature: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Convert raw outputs to scores.

    Classification: ``softmax(raw / temperature)`` (temperature scaling: Guo et al. 2017). Presence
    and multilabel: ``sigmoid(raw / temperature)``; a presence member with two outputs, [absent,
    present], gives the softmax's second column, which is the sigmoid of their difference.
    Probabilities and values are scores already.

    Args:
        raw: float32 (N, outputs), or of several members (M, N, outputs).
        task: the ensemble's kind of answer.
        output: whether the raw outputs are logits, probabilities or values.
        temperature: the number that logits are divided by; for several members (M, 1, 1).

    Returns:
        Scores, float32 (..., N, C score labels), and the logits that they were computed from;
        None where the raw outputs are no logits.
    """
    two_columns = task is Task.PRESENCE and raw.shape[-1] == 2
    if output is not Output.LOGITS:
        return (raw[..., 1:] if two_columns else raw), None
    logits = (raw[..., 1:] - raw[..., :1] if two_columns else raw) / temperature
    if task is Task.CLASSIFICATION:
        return logits.softmax(dim=-1), logits
    return logits.sigmoid(), logits


def difference(first: Tensor, second: Tensor, spec: EnsembleSpec, member: Member) -> float:
    """Compare two ways of running a member by the largest difference between their scores.

    Regression has no fixed scale, so the difference is divided by the largest value (at least 1).

    Args:
        first: raw outputs of the member, float32 (N, outputs).
        second: its raw outputs for the same samples, computed in another way.
        spec: the ensemble.
        member: the member's part of the spec.
    """
    output = spec.output_of(member)
    one, other = (scores(raw, spec.task, output, member.temperature)[0] for raw in (first, second))
    scale = float(one.abs().max().clamp(min=1.0)) if spec.task is Task.REGRESSION else 1.0
    return float((one - other).abs().max()) / scale


@torch.inference_mode()
def check_member(loaded: LoadedMember, spec: EnsembleSpec, member: Member, batch: Tensor) -> None:
    """Run a member on batches of 3, 2 and 1 samples, and compare its outputs with the spec.

    Args:
        loaded: the member.
        spec: the ensemble.
        member: the member's part of the spec.
        batch: three different samples, float32 (3, channels, height, width).

    Raises:
        MemberError: the member fails, or gives another number of outputs than the spec's labels
            need, numbers that are not finite, numbers outside 0 to 1 where the spec says
            probabilities, or answers that depend on the other samples of the batch.
        torch.OutOfMemoryError: the device has no room for its activations.
    """
    where = f"ensemble '{spec.name}', member '{loaded.name}' ({member.weights})"
    together, pair, alone = _run_in_sizes(loaded, where, [batch, batch[:2], batch[2:]])
    _check_shapes(where, spec, [together, pair, alone])
    if not together.isfinite().all():
        raise MemberError(
            f"{where} gives numbers that are not finite: its weights are damaged, or its "
            "preprocessing is not the one that it was trained with"
        )
    output = spec.output_of(member)
    probable = bool(((together >= -1e-3) & (together <= 1 + 1e-3)).all())
    if output is Output.PROBABILITIES and not probable:
        raise MemberError(
            f"{where} gives numbers outside 0 to 1, which are no probabilities: set output: logits"
        )
    if (
        output is Output.LOGITS
        and spec.task is Task.CLASSIFICATION
        and probable
        and bool(((together.sum(dim=1) - 1).abs() < 1e-3).all())
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
) -> nn.Module | Callable[[Tensor], Tensor]:
    match member.weights_format:
        case WeightsFormat.SAFETENSORS | WeightsFormat.STATE_DICT:
            return load_weights(member, path, folder, device)
        case WeightsFormat.TORCHSCRIPT:
            return load_torchscript(path, device)
        case WeightsFormat.EXPORTED:
            return load_exported(path, device)
        case WeightsFormat.ONNX:
            return load_onnx(path, device)


def _check_file(path: Path) -> None:
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
    """Run a member on several batches; one error says whether the batch size was to blame."""
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
    columns = len(spec.score_labels)
    fitting = [columns, 2] if spec.task is Task.PRESENCE else [columns]
    for samples, output in zip((3, 2, 1), outputs, strict=True):
        if output.dim() != 2 or len(output) != samples or output.shape[1] not in fitting:
            wanted = " or ".join(f"({samples}, {each})" for each in fitting)
            raise MemberError(
                f"{where} gives {tuple(output.shape)} for {samples} samples, where the spec's "
                f"labels ask for {wanted}: correct the labels, or the number of outputs"
            )


def _first_line(error: Exception) -> str:
    (line, *_) = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
