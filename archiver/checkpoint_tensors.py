"""Takes the tensors out of a checkpoint and writes them as safetensors; runs in a confined process.

It is the job that `convert` gives to `sandbox`. The tensors of a pickled module whose class is not
known are named as its state dict would name them: a module keeps them in `_parameters` and
`_buffers`, and the modules inside it in `_modules`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..handlers.base.errors import MemberError
from .unpickling import Stub, unpickle

_BLOCK_BYTES = 1024**2

# In this order, if several are at the top of a checkpoint.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# Prefixes that DistributedDataParallel and torch.compile put before every name. No architecture has
# them itself, unlike Lightning's `model.`.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")

_MAX_NAMES_REPORTED = 50

_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class Contents:
    """What a checkpoint holds.

    Attributes:
        tensors: path of each set of tensors in the checkpoint -> its tensors by name.
        asked_for: names of functions and classes that the pickle asked for and did not get.
        others: paths of values beside tensors, with the name of their type.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    asked_for: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)


def warm_up() -> None:
    """Convert a small checkpoint of each kind, so that nothing is left to be imported."""
    content = {"state_dict": {"a": torch.zeros(1), "b": Stub, "c": np.zeros(1)}}
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
        file.seek(0)
        list(answer(file, key=None, prefix=None))


def answer(
    source: BinaryIO, *, key: str | None, prefix: str | None
) -> Iterator[dict[str, Any] | memoryview]:
    """Yield a report about a checkpoint, and then its tensors as a safetensors file.

    Args:
        source: the checkpoint.
        key: path of the tensors to take, such as ``ema.state_dict``; None: the usual ones.
        prefix: take only the tensors whose names begin with this, without it; None: all, without
            the prefix of a wrapper if all have it.

    Raises:
        MemberError: the checkpoint holds no tensors, or several sets of them and none is usual.
    """
    contents = read_contents(source)
    path = chosen(contents, key)
    tensors, removed = without_prefix(contents.tensors[path], prefix)
    header, num_bytes = _header(tensors)
    storages = {each.untyped_storage().data_ptr() for each in tensors.values() if each.numel()}
    yield {
        "path": path,
        "tensors": len(tensors),
        "bytes": num_bytes,
        "prefix": removed,
        "shared": sum(1 for each in tensors.values() if each.numel()) - len(storages),
        "other_tensors": {
            name: len(each)
            for name, each in [*contents.tensors.items()][:_MAX_NAMES_REPORTED]
            if name != path
        },
        "others": dict([*contents.others.items()][:_MAX_NAMES_REPORTED]),
        "asked_for": sorted(contents.asked_for)[:_MAX_NAMES_REPORTED],
    }
    yield memoryview(header)
    for tensor in tensors.values():
        data = _bytes_of(tensor)
        for start in range(0, len(data), _BLOCK_BYTES):
            yield data[start : start + _BLOCK_BYTES]


def read_contents(source: BinaryIO) -> Contents:
    """Unpickle a checkpoint and find the tensors in it.

    Raises:
        MemberError: the file is no checkpoint of PyTorch.
    """
    if zipfile.is_zipfile(source):
        source.seek(0)
        with zipfile.ZipFile(source) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise MemberError(
                    "this is a TorchScript archive, which holds its network: it needs no "
                    "conversion; name it in the spec with format: torchscript"
                )
    source.seek(0)
    root, asked_for = unpickle(source)
    contents = Contents(asked_for=asked_for)
    if isinstance(root, Stub) and not isinstance(root.attributes.get("_modules"), dict):
        made = f"an object of {root.origin}, which was not called"
    else:
        made = f"an object of the type {type(root).__name__}"
    _collect(root, "", contents, set())
    if not contents.tensors:
        asked = f"; it asked for {', '.join(sorted(asked_for)[:5])}" if asked_for else ""
        raise MemberError(f"holds no tensors, but {made}{asked}")
    return contents


def chosen(contents: Contents, key: str | None) -> str:
    """Return the path of the set of tensors to convert.

    Raises:
        MemberError: there is no such set, or it is not clear which.
    """
    sets = contents.tensors
    listed = ", ".join(f"{path or '(top)'} ({len(t)})" for path, t in [*sets.items()][:20])
    if key is not None:
        if key not in sets:
            raise MemberError(f"has no tensors at '{key}'; it has (with their number): {listed}")
        return key
    for path in (*_USUAL_KEYS, ""):
        if path in sets:
            return path
    if len(sets) > 1:
        raise MemberError(
            f"holds several sets of tensors (with their number): {listed}; choose one with --key"
        )
    return next(iter(sets))


def without_prefix(tensors: dict[str, Tensor], prefix: str | None) -> tuple[dict[str, Tensor], str]:
    """Remove a prefix from the names of tensors.

    Args:
        tensors: tensors by name.
        prefix: the prefix to remove; tensors without it are left out. None: prefixes of wrappers,
            if all names have them.

    Returns:
        The tensors by their new names, and the prefix that was removed.

    Raises:
        MemberError: no name begins with the prefix.
    """
    if prefix is not None:
        named = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if not named:
            first = ", ".join([*tensors][:3])
            raise MemberError(f"no tensor's name begins with '{prefix}'; names are {first}")
        return named, prefix
    removed = ""
    while found := next(
        (each for each in _WRAPPER_PREFIXES if all(n.startswith(each) for n in tensors)), ""
    ):
        tensors = {name.removeprefix(found): each for name, each in tensors.items()}
        removed += found
    return tensors, removed


def _collect(node: object, path: str, contents: Contents, visited: set[int]) -> bool:
    """Find the sets of tensors in an object and in all that it holds; return whether it has any."""
    if id(node) in visited:
        return False
    visited.add(id(node))
    if isinstance(node, Stub) and isinstance(node.attributes.get("_modules"), dict):
        tensors = dict(_of_module(node, "", set()))
        if tensors:
            contents.tensors[path] = tensors
        return bool(tensors)
    direct: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    has_inner = False
    for name, value in _children(node):
        tensor = _as_tensor(value)
        inner = f"{path}.{name}" if path else name
        if tensor is not None:
            direct[name] = tensor
        elif _collect(value, inner, contents, visited):
            has_inner = True
        else:
            others[inner] = getattr(value, "origin", "") or type(value).__name__
    if direct:
        contents.tensors[path] = direct
    if direct or has_inner:
        contents.others |= others
    return bool(direct) or has_inner


def _children(node: object) -> Iterator[tuple[str, object]]:
    """Yield what an object holds, by name or position."""
    if isinstance(node, Mapping):
        yield from ((str(name), value) for name, value in node.items())
    elif isinstance(node, list | tuple | set | frozenset):
        yield from ((str(position), value) for position, value in enumerate(node))
    elif isinstance(node, Stub):
        yield from _children(node.items)
        yield from _children(node.attributes)
        yield from _children(node.members)
        yield from _children(node.arguments)
    elif (tensor := _as_tensor(node)) is not None:
        yield "tensor", tensor


def _of_module(module: Stub, prefix: str, visited: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of a pickled module's state dict, without its class."""
    if id(module) in visited:
        return
    visited.add(id(module))
    attributes = module.attributes
    not_saved = attributes.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        entries = attributes.get(kind)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            tensor = _as_tensor(value)
            is_saved = not (isinstance(not_saved, set) and name in not_saved)
            if tensor is not None and is_saved:
                yield f"{prefix}{name}", tensor
    modules = attributes.get("_modules")
    for name, inner in modules.items() if isinstance(modules, dict) else ():
        if isinstance(inner, Stub):
            yield from _of_module(inner, f"{prefix}{name}.", visited)


def _as_tensor(value: object) -> Tensor | None:
    """Return a tensor, or an array of numbers as one; None if the value is neither."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # torch takes no arrays of the other byte order.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    return None


def _header(tensors: Mapping[str, Tensor]) -> tuple[bytes, int]:
    """Return the beginning of a safetensors file, and the number of bytes of its tensors.

    safetensors itself would need two further copies of all tensors in memory. The format is: the
    header's length as 8 bytes, the header as JSON padded with spaces, and the bytes of the tensors.

    Raises:
        MemberError: a tensor has a type or layout that safetensors does not have.
    """
    for name, tensor in tensors.items():
        if (
            tensor.dtype not in _SAFETENSORS_TYPES
            or tensor.layout is not torch.strided
            or tensor.is_meta
        ):
            layout = "meta" if tensor.is_meta else str(tensor.layout)
            raise MemberError(
                f"tensor '{name}' ({tensor.dtype}, {layout}) cannot be stored as safetensors; "
                "save it as a dense tensor of an ordinary type"
            )
        if name == "__metadata__":
            raise MemberError("a tensor is called __metadata__, which safetensors reserves")
    ends = list(accumulate(each.numel() * each.element_size() for each in tensors.values()))
    starts = [0, *ends[:-1]]
    entries = {
        name: {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        for (name, tensor), start, end in zip(tensors.items(), starts, ends, strict=True)
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ends[-1]


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements; copied only if they are not."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
