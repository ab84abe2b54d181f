"""Architectures: a torchvision name, or a class in the user's own file, becomes a module."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ..base.errors import MemberError
from ..base.suggestions import nearest
from ..base.torchvision_imports import models
from ..spec import Member

_TORCHVISION = "torchvision.models."
_OWN_NAME = "_member_code_"
# Modules that users' files imported from their own folder -> that folder.
_imported_from: dict[str, Path] = {}


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
    file = member.architecture_file
    if file is None:
        raise MemberError(
            f"architecture '{member.architecture}' is neither torchvision.models.NAME nor "
            "FILE.py:CLASS"
        )
    class_name = (member.architecture or "").partition(".py:")[2]
    with _import_path(folder):
        return _build(member, _from_file(folder, file, class_name))


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


def _from_file(folder: Path, file: str, name: str) -> Callable[..., nn.Module]:
    module = _import_file(folder, file)
    found = getattr(module, name, None)
    if not callable(found):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise MemberError(f"{file} has no class or function '{name}'{nearest(name, known)}")
    build: Callable[..., nn.Module] = found
    return build


def _import_file(folder: Path, file: str) -> ModuleType:
    """Import a file under a name of its own, so that members never meet in `sys.modules`."""
    path = folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MemberError(f"{file} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()
    module_name = f"{_OWN_NAME}{digest[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        # From these very bytes: the import system might take the bytecode of an older file.
        exec(compile(content, path, "exec"), vars(module))
    except Exception as error:
        del sys.modules[module_name]
        raise MemberError(
            f"{file} cannot be imported: {type(error).__name__}: {error} (modules that it imports "
            "from the spec's folder must be listed in extra_files)"
        ) from error
    return module


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, and never those of another ensemble."""
    folder = folder.resolve()
    for name, origin in list(_imported_from.items()):
        if origin != folder:
            sys.modules.pop(name, None)
            del _imported_from[name]
    before, writes_no_byte_code = set(sys.modules), sys.dont_write_bytecode
    # It would not be listed in the archive's record, and the next worker refuses what is not.
    sys.dont_write_bytecode = True
    # The files may be younger than the import system's view of the folder.
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_no_byte_code
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            inside = file is not None and Path(file).resolve().is_relative_to(folder)
            if inside and not name.startswith(_OWN_NAME):
                _imported_from[name] = folder
