"""Weights without an architecture: safetensors files and state dicts, into a module."""

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

_SHOWN_KEYS = 5
# Where training frameworks put the state dict in their checkpoints.
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict")
# What wrappers put before every key: DataParallel, Lightning modules, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_SAVE_WEIGHTS = (
    "save the weights alone: safetensors.torch.save_file(model.state_dict(), ...) or "
    "torch.save(model.state_dict(), ...)"
)


def load_weights(member: Member, path: Path, folder: Path, device: torch.device) -> nn.Module:
    """A member's architecture with its weights, on the device and in evaluation mode.

    Weights take the architecture's own floating-point type, whatever the file's.

    Raises:
        MemberError: the file cannot be read, or does not fit the architecture.
    """
    try:
        model = build_without_data(member)
        empty = model is not None
        if model is None:
            model = build_architecture(member, folder)
    except MemberError as error:
        error.place = ("architecture",)
        raise
    state = read_state_dict(member.weights_format, path)
    expected = model.state_dict()
    _complete(state, expected)
    misshapen = _misshapen(expected, state)
    if misshapen:
        missing = [key for key in expected if key not in state]
        unexpected = [key for key in state if key not in expected]
        raise _misfit(path, missing, unexpected, misshapen)
    if empty:
        # In place: the dict also carries the versions of its modules. Copied, so that nothing
        # depends on the file any longer.
        for key, value in state.items():
            dtype = expected[key].dtype if key in expected else value.dtype
            state[key] = value.to(device, dtype, copy=True)
    # Not strict: modules rename the keys of their older versions first; what then remains is
    # reported in one message.
    missing, unexpected = model.load_state_dict(state, strict=False, assign=empty)
    if missing or unexpected:
        raise _misfit(path, missing, unexpected, [])
    return model.to(device).eval()


def read_state_dict(weights_format: WeightsFormat, path: Path) -> OrderedDict[str, Tensor]:
    """Tensors by name, on the CPU; nothing but tensors is ever unpickled.

    Raises:
        MemberError: the file is damaged, or holds more than tensors.
    """
    if weights_format is WeightsFormat.SAFETENSORS:
        try:
            # A type that can also hold the modules' versions, as torch.load returns.
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


def _complete(state: OrderedDict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Add what a file may lack although all its weights are there."""
    if not hasattr(state, "_metadata"):
        # The versions of the modules, which safetensors does not store: MNASNet refuses without.
        vars(state)["_metadata"] = vars(expected).get("_metadata")
    for key, value in expected.items():
        # Counts the batches of training. Files from before torch 0.4.1 and some converters lack it.
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros(value.shape, dtype=value.dtype)


def _unpickle_tensors(path: Path) -> object:
    try:
        # Only the zip format, torch's own since 1.6, can be mapped into memory.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if refused is None:
            # Without torch's text, which advises to unpickle everything.
            raise _damaged(path, "no pickle of tensors") from error
        raise MemberError(
            f"{path.name} holds more than tensors ({refused[1]}), as a whole pickled module does; "
            "it is refused, since unpickling runs whatever code it holds: in the environment that "
            f"wrote it, {_SAVE_WEIGHTS}"
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
    return MemberError(
        f"{path.name} is damaged or not a file that torch.save wrote ({reason}); copy it again, or "
        "set format to what it is"
    )


def _misshapen(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for key, want in expected.items():
        got = state.get(key)
        if got is None:
            continue
        if got.shape != want.shape:
            problems.append(f"{key} is {tuple(got.shape)}, not {tuple(want.shape)}")
        elif got.is_floating_point() != want.is_floating_point():
            problems.append(f"{key} is {got.dtype}, not {want.dtype}")
    return problems


def _misfit(
    path: Path, missing: list[str], unexpected: list[str], misshapen: list[str]
) -> MemberError:
    found = {
        "missing keys": missing,
        "unexpected keys": unexpected,
        "other shapes or types": misshapen,
    }
    problems = [
        f"{what}: {', '.join(keys[:_SHOWN_KEYS])}"
        + (f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else "")
        for what, keys in found.items()
        if keys
    ]
    return MemberError(
        f"{path.name} does not fit the architecture ({'; '.join(problems)}); "
        f"{_remedy(missing, unexpected)}"
    )


def _remedy(missing: list[str], unexpected: list[str]) -> str:
    for prefix in _PREFIXES:
        if unexpected and all(key.startswith(prefix) for key in unexpected):
            return (
                f"the file's keys begin with '{prefix}', which a wrapper around the model adds: "
                "save the inner module's state dict"
            )
        if missing and all(key.startswith(prefix) for key in missing):
            return (
                f"the architecture's keys begin with '{prefix}', the file's do not: the "
                "architecture wraps the model whose weights these are"
            )
    return "check the architecture and its arguments (the number of classes, above all)"
