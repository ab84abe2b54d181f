"""Architectures: a torchvision name, or a class in the user's own file, becomes a module."""

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
    """A member's architecture with fresh, random weights.

    Args:
        member: names the architecture and its arguments.
        folder: where the files that the spec names are.

    Raises:
        MemberError: no such architecture, its file cannot be imported, or it refuses its arguments.
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
    """A torchvision architecture on the meta device: no memory, and no time for random weights.

    Returns:
        None where that is not known to be exact: for the user's own classes, whose attributes may
        hold tensors that no state dict brings back, and for those of torchvision that read their
        own tensors (RegNet) or keep some out of the state dict.

    Raises:
        MemberError: torchvision has no such architecture.
    """
    name = _torchvision_name(member)
    if name is None:
        return None
    builder = _torchvision_builder(member, name)
    try:
        with torch.device("meta"):
            model = builder(**member.arguments)
    except Exception:
        # Wrong arguments come to light again, and are reported, in `build_architecture`.
        return None
    stored = model.state_dict().keys()
    tensors = chain(model.named_parameters(), model.named_buffers())
    return model if all(key in stored for key, _ in tensors) else None


def _torchvision_name(member: Member) -> str | None:
    text = member.architecture or ""
    return text.removeprefix(_TORCHVISION) if text.startswith(_TORCHVISION) else None


def _torchvision_builder(member: Member, name: str) -> Callable[..., nn.Module]:
    known = models.list_models(module=models)
    if name not in known:
        raise MemberError(
            f"torchvision.models has no image classification model '{name}'{nearest(name, known)}"
        )
    if "weights" in member.arguments:
        raise MemberError(
            f"{member.architecture}: remove the argument weights; the member's own file "
            f"{member.weights} holds them"
        )
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder


def _build(member: Member, build: Callable[..., nn.Module]) -> nn.Module:
    try:
        model = build(**member.arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        written = ", ".join(f"{key}={value!r}" for key, value in member.arguments.items())
        raise MemberError(
            f"{member.architecture}({written}) failed: {type(error).__name__}: {error}; its "
            f"arguments are {_signature(build)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise MemberError(
            f"{member.architecture} gave {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _signature(build: Callable[..., nn.Module]) -> str:
    try:
        return str(inspect.signature(build))
    except (TypeError, ValueError):
        return "unknown"
