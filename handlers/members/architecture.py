"""Builds the architecture that a member names: torchvision's, or a class in the user's file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from ..base.errors import MemberError
from ..base.own_code import imports_from, load_own
from ..base.suggestions import nearest
from ..base.torchvision_imports import models
from ..spec import Member

_TORCHVISION = "torchvision.models."


def build_architecture(member: Member, folder: Path) -> nn.Module:
    """Build a member's architecture, with new random weights.

    Args:
        member: the member's entry in the spec, with the architecture's name and arguments.
        folder: the folder that holds the files of the spec.

    Raises:
        MemberError: the architecture does not exist, its file cannot be imported, or building it
            with these arguments fails.
    """
    name = _torchvision_name(member)
    if name is not None:
        return _build(member, _torchvision_builder(member, name))
    if member.architecture_file is None:
        raise MemberError(
            f"architecture '{member.architecture}' is neither torchvision.models.NAME nor "
            "FILE.py:CLASS"
        )
    with imports_from(folder):
        return _build(member, load_own(folder, member.architecture or ""))


def build_without_data(member: Member) -> nn.Module | None:
    """Build a torchvision architecture on torch's meta device, where tensors have no data.

    This takes no memory, and no time for random weights. A state dict then brings all the data.

    Args:
        member: the member's entry in the spec, with the architecture's name and arguments.

    Returns:
        The model, or None if a state dict might not bring all of its tensors; `build_architecture`
        must then build it. This is so for the user's own classes, whose attributes may hold further
        tensors, and for architectures of torchvision that read tensors while they are built
        (RegNet) or keep some tensors out of the state dict.

    Raises:
        MemberError: torchvision has no architecture of this name.
    """
    name = _torchvision_name(member)
    if name is None:
        return None
    builder = _torchvision_builder(member, name)
    try:
        with torch.device("meta"):
            model = builder(**member.arguments)
    except Exception:
        # If the arguments are wrong, `build_architecture` fails too, and reports it.
        return None
    keys_in_state_dict = model.state_dict().keys()
    tensors = chain(model.named_parameters(), model.named_buffers())
    return model if all(key in keys_in_state_dict for key, _ in tensors) else None


def _torchvision_name(member: Member) -> str | None:
    """Return NAME of an architecture ``torchvision.models.NAME``; None for other architectures."""
    text = member.architecture or ""
    return text.removeprefix(_TORCHVISION) if text.startswith(_TORCHVISION) else None


def _torchvision_builder(member: Member, name: str) -> Callable[..., nn.Module]:
    """Return torchvision's function that builds an architecture.

    Raises:
        MemberError: torchvision has no such architecture, or the arguments ask it for weights.
    """
    names = models.list_models(module=models)
    if name not in names:
        raise MemberError(
            f"torchvision.models has no image classification model '{name}'{nearest(name, names)}"
        )
    if "weights" in member.arguments:
        raise MemberError(
            f"{member.architecture}: remove the argument weights; the member's own file "
            f"{member.weights} holds them"
        )
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder


def _build(member: Member, build: Callable[..., nn.Module]) -> nn.Module:
    """Call the class or function of an architecture with the member's arguments.

    Raises:
        MemberError: the call fails, or does not return a torch module.
    """
    try:
        model = build(**member.arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in member.arguments.items())
        raise MemberError(
            f"{member.architecture}({arguments}) failed: {type(error).__name__}: {error}; its "
            f"arguments are {_signature(build)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise MemberError(
            f"{member.architecture} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _signature(build: Callable[..., nn.Module]) -> str:
    """Return the signature of a class or function as text for a message."""
    try:
        return str(inspect.signature(build))
    except (TypeError, ValueError):
        return "unknown"
