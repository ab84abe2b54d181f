"""Batches of pixels or of preprocessed inputs: .npy, safetensors, and arrays of other forms."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from ...base.errors import RequestError
from ..budget import RequestBudget
from .items import Item

NPY = b"\x93NUMPY"
_INPUT = "input"
_MAX_NPY_HEADER_BYTES = 10_000
_MAX_SAFETENSORS_HEADER_BYTES = 100_000
"""Enough for one tensor and its metadata; a file of a million empty tensors takes seconds."""

_PIXELS_IN_BAND = 1 << 20
"""Pixels whose transparency is resolved at once; the arithmetic takes 50 bytes for each."""

_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPES = (
    "uint8 pixels are (N, H, W), (N, H, W, 3), (N, H, W, 4) or (N, 3, H, W); preprocessed inputs "
    "are floats (float16, bfloat16, float32 or float64) of shape (N, C, H, W)"
)


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin with the length of a JSON header, and that header."""
    if len(data) < 10 or data[8:9] != b"{":
        return False
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= len(data) - 8


def from_npy(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """The rows of a NumPy file.

    Raises:
        RequestError: it is damaged, pickled, or no batch of samples.
        TooLargeError: more rows than the limit.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if version[0] not in reader:
            raise ValueError(f"version {version} is not supported")
        shape, fortran, dtype = reader[version[0]](file, max_header_size=_MAX_NPY_HEADER_BYTES)
        if dtype.hasobject:
            raise ValueError("it holds Python objects; save numbers alone")
        content = memoryview(data)[file.tell() :]
        if any(side < 0 for side in shape) or len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content)} bytes do not make the shape {shape} of {dtype}")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # numpy's reader lets errors of Python's own parser through.
        raise RequestError(f"{name}: the .npy file cannot be read: {error}") from None
    return rows(array, name=name, budget=budget)


def from_safetensors(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """The rows of the only tensor of a safetensors file, or of the one named ``input``.

    Raises:
        RequestError: it is damaged, or no batch of samples.
        TooLargeError: more rows than the limit.
    """
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_SAFETENSORS_HEADER_BYTES:
        raise RequestError(
            f"{name}: the header of the safetensors file has {length} bytes, and the limit is "
            f"{_MAX_SAFETENSORS_HEADER_BYTES}; send one tensor"
        )
    try:
        tensors = load(data)
    except Exception as error:
        raise RequestError(f"{name}: the safetensors file cannot be read: {error}") from None
    if _INPUT in tensors:
        return _tensor_rows(tensors[_INPUT], name, budget)
    if len(tensors) != 1:
        raise RequestError(
            f"{name}: the safetensors file holds {len(tensors)} tensors; send one, or name it "
            f"'{_INPUT}'"
        )
    return _tensor_rows(next(iter(tensors.values())), name, budget)


def rows(array: NDArray[Any], *, name: str, budget: RequestBudget) -> list[Item]:
    """One sample for each row of an array.

    Args:
        array: (N, ...) uint8 pixels, or floats that are preprocessed already.
        name: of the batch.
        budget: of the request; each row is a sample.

    Raises:
        RequestError: other dtypes or shapes, or no rows.
        TooLargeError: more rows than the limit.
    """
    pixels = array.dtype == np.uint8
    if not pixels and not (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        raise RequestError(f"{name}: numbers of type {array.dtype} are neither; {_SHAPES}")
    _check_shape(array.shape, pixels, name, budget)
    native = np.ascontiguousarray(array) if pixels else array.astype(np.float32)
    if not native.flags.writeable:  # A view of the request's bytes, which torch would warn about.
        native = native.copy()
    return _items(torch.from_numpy(native), name)


def _tensor_rows(batch: Tensor, name: str, budget: RequestBudget) -> list[Item]:
    if batch.dtype not in _DTYPES:
        raise RequestError(f"{name}: numbers of type {batch.dtype} are neither; {_SHAPES}")
    _check_shape(tuple(batch.shape), batch.dtype is torch.uint8, name, budget)
    return _items(batch, name)


def _check_shape(shape: tuple[int, ...], pixels: bool, name: str, budget: RequestBudget) -> None:
    if len(shape) == 3 and (not pixels or shape[2] in (3, 4)):
        raise RequestError(
            f"{name}: shape {shape} is no batch of samples, but seems to be one "
            f"without its first dimension; add it (array[None]); {_SHAPES}"
        )
    if len(shape) not in (3, 4):
        raise RequestError(f"{name}: shape {shape} is no batch of samples; {_SHAPES}")
    if 0 in shape:
        raise RequestError(f"{name}: shape {shape} is empty; {_SHAPES}")
    budget.take_samples(shape[0], name)


def _items(batch: Tensor, name: str) -> list[Item]:
    pixels = batch.dtype is torch.uint8
    batch = _to_rgb(batch, name) if pixels else batch.to(torch.float32)
    return [Item(f"{name}[{index}]", row) for index, row in enumerate(batch)]


def _to_rgb(batch: Tensor, name: str) -> Tensor:
    """uint8 (N, 3, H, W), with transparency put on white as for images."""
    if batch.dim() == 3:
        return batch.unsqueeze(1).expand(-1, 3, -1, -1)
    if batch.shape[3] in (1, 3, 4) and batch.shape[1] != 3:
        batch = batch.permute(0, 3, 1, 2)
    elif batch.shape[1] != 3 or batch.shape[3] in (1, 3, 4):
        raise RequestError(
            f"{name}: shape {tuple(batch.shape)} is not clearly pixels; {_SHAPES}; send images "
            "whose height is 3 as (N, 3, H, W)"
            if batch.shape[1] == 3
            else f"{name}: shape {tuple(batch.shape)} is not pixels; {_SHAPES}"
        )
    if batch.shape[1] == 1:
        return batch.expand(-1, 3, -1, -1)
    if batch.shape[1] == 4:
        return torch.stack([_on_white(row) for row in batch])
    return batch


def _on_white(pixels: Tensor) -> Tensor:
    opaque = torch.empty((3, *pixels.shape[1:]), dtype=torch.uint8)
    rows = max(1, _PIXELS_IN_BAND // pixels.shape[2])
    for top in range(0, pixels.shape[1], rows):
        band = pixels[:, top : top + rows].to(torch.int32)
        color, alpha = band[:3], band[3:]
        opaque[:, top : top + rows] = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return opaque
