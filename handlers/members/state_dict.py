"""Loads weights without an architecture (safetensors files and state dicts) into a module."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..base.errors import MemberError
from ..spec import Member, WeightsFormat
from .architecture import build_architecture, build_without_data

_MAX_KEYS_SHOWN = 5
"""A message lists this many keys of each kind of problem, and gives the number of the others."""

# Keys under which checkpoints of training frameworks hold the state dict.
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict")
# Prefixes that wrappers put before every key: DataParallel, Lightning modules, torch.compile.
_WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
_SAVE_WEIGHTS = (
    "save the weights alone: safetensors.torch.save_file(model.state_dict(), ...) or "
    "torch.save(model.state_dict(), ...)"
)


def load_weights(member: Member, path: Path, folder: Path, device: torch.device) -> nn.Module:
    """Build a member's architecture and load its weights, in evaluation mode.

    Weights are converted to the floating-point type of the architecture, whatever type the file
    has.

    Args:
        member: the member's entry in the spec.
        path: the file with the weights.
        folder: the folder that holds the files of the spec.
        device: the device for the module.

    Raises:
        MemberError: the file cannot be read, or does not fit the architecture.
    """
    try:
        model = build_without_data(member)
        has_no_data = model is not None
        if model is None:
            model = build_architecture(member, folder)
    except MemberError as error:
        error.place = ("architecture",)
        raise
    state = read_state_dict(member.weights_format, path)
    expected = model.state_dict()
    _add_optional_entries(state, expected)
    wrong_tensors = _wrong_tensors(expected, state)
    if wrong_tensors:
        missing = [key for key in expected if key not in state]
        unexpected = [key for key in state if key not in expected]
        raise _misfit(path, missing, unexpected, wrong_tensors)
    if has_no_data:
        # The model's tensors have no data, so those of the file take their place. The dict is
        # changed in place, because it also carries the versions of the modules. The tensors are
        # copied, so that the module does not depend on the file, which is mapped into memory.
        for key, tensor in state.items():
            dtype = expected[key].dtype if key in expected else tensor.dtype
            state[key] = tensor.to(device, dtype, copy=True)
    # A module renames keys that older versions of it wrote while it loads them. With strict=False
    # the keys that still do not fit are returned, so that one message can report them all.
    missing, unexpected = model.load_state_dict(state, strict=False, assign=has_no_data)
    if missing or unexpected:
        raise _misfit(path, missing, unexpected, [])
    return model.to(device).eval()


def read_state_dict(weights_format: WeightsFormat, path: Path) -> OrderedDict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU. Nothing but tensors is ever unpickled.

    Args:
        weights_format: safetensors, or a state dict that torch.save wrote.
        path: the file.

    Returns:
        Name of each parameter and buffer -> its tensor.

    Raises:
        MemberError: the file is damaged, or holds more than tensors.
    """
    if weights_format is WeightsFormat.SAFETENSORS:
        try:
            # An OrderedDict can hold the modules' versions as an attribute, as torch.load's does.
            return OrderedDict(safetensors.torch.load_file(path))
        except safetensors.SafetensorError as error:
            raise MemberError(
                f"{path.name} is not a whole safetensors file ({error}); copy it again, or set "
                "format to what it is"
            ) from error
    content = _unpickle_tensors(path)
    for key in _CHECKPOINT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise MemberError(
            f"{path.name} holds {type(content).__name__}, not a state dict; {_SAVE_WEIGHTS}"
        )
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise MemberError(
                f"{path.name} is no state dict: '{key}' holds {type(value).__name__}, not a "
                f"tensor; {_SAVE_WEIGHTS}"
            )
    return content if isinstance(content, OrderedDict) else OrderedDict(content)


def _add_optional_entries(state: OrderedDict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Add entries that a file with all weights may lack: versions of modules, batch counters.

    Args:
        state: the file's state dict, which is changed in place.
        expected: the architecture's own state dict.
    """
    if not hasattr(state, "_metadata"):
        # The versions of the modules. safetensors does not store them, and MNASNet refuses a state
        # dict without them.
        vars(state)["_metadata"] = vars(expected).get("_metadata")
    for key, value in expected.items():
        # The number of training batches, which inference does not use. It is missing in files of
        # torch before 0.4.1 and of some converters.
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros(value.shape, dtype=value.dtype)


def _unpickle_tensors(path: Path) -> object:
    """Unpickle a file that torch.save wrote, and refuse everything but tensors and containers.

    Raises:
        MemberError: the file is damaged, or holds other objects.
    """
    try:
        # Only the zip format, which torch.save writes since 1.6, can be mapped into memory.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if refused is None:
            # torch's own message is left out, since it advises to unpickle everything.
            raise _damaged(path, "no pickle of tensors") from error
        raise MemberError(
            f"{path.name} holds more than tensors ({refused[1]}), as a whole pickled module does; "
            "it is refused, since unpickling runs whatever code it holds: take the tensors out "
            f"with ts-ensemble convert {path.name} {path.stem}.safetensors, or, in the environment "
            f"that wrote it, {_SAVE_WEIGHTS}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript archive" in str(error):
            raise MemberError(
                f"{path.name} is a TorchScript archive: set format: torchscript and remove "
                "architecture"
            ) from error
        (line, *_) = str(error).strip().splitlines() or [type(error).__name__]
        raise _damaged(path, line) from error


def _damaged(path: Path, reason: str) -> MemberError:
    """Return the error that reports a file which torch.load cannot read."""
    return MemberError(
        f"{path.name} is damaged or not a file that torch.save wrote ({reason}); copy it again, or "
        "set format to what it is"
    )


def _wrong_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Describe each tensor whose shape or kind of type is not that of the architecture's tensor."""
    problems = []
    for key, expected_tensor in expected.items():
        tensor = state.get(key)
        if tensor is None:
            continue
        if tensor.shape != expected_tensor.shape:
            problems.append(f"{key} is {tuple(tensor.shape)}, not {tuple(expected_tensor.shape)}")
        elif tensor.is_floating_point() != expected_tensor.is_floating_point():
            problems.append(f"{key} is {tensor.dtype}, not {expected_tensor.dtype}")
    return problems


def _misfit(
    path: Path, missing: list[str], unexpected: list[str], wrong_tensors: list[str]
) -> MemberError:
    """Return the error that reports weights which do not fit the architecture.

    Args:
        path: the file with the weights.
        missing: keys that only the architecture has.
        unexpected: keys that only the file has.
        wrong_tensors: descriptions of tensors with another shape or type.
    """
    kinds_of_problem = {
        "missing keys": missing,
        "unexpected keys": unexpected,
        "other shapes or types": wrong_tensors,
    }
    problems = [
        f"{kind}: {', '.join(items[:_MAX_KEYS_SHOWN])}"
        + (f" and {len(items) - _MAX_KEYS_SHOWN} more" if len(items) > _MAX_KEYS_SHOWN else "")
        for kind, items in kinds_of_problem.items()
        if items
    ]
    return MemberError(
        f"{path.name} does not fit the architecture ({'; '.join(problems)}); "
        f"{_remedy(missing, unexpected)}"
    )


def _remedy(missing: list[str], unexpected: list[str]) -> str:
    """Return what the user should do about keys that do not fit, as the end of a message."""
    for prefix in _WRAPPER_PREFIXES:
        if unexpected and all(key.startswith(prefix) for key in unexpected):
            return (
                f"the file's keys begin with '{prefix}', which a wrapper around the model adds: "
                "save the inner module's state dict"
            )
        if missing and all(key.startswith(prefix) for key in missing):
            return (
                f"the architecture's keys begin with '{prefix}', the file's do not: the "
                "architecture is a wrapper, and the file holds the weights of the model inside it"
            )
    return "check the architecture and its arguments (the number of classes, above all)"
