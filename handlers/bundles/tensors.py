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

from ..errors import RequestError
from .items import BundleLimits, Item

NPY = b"\x93NUMPY"
_INPUT = "input"
_LONGEST_HEADER = 100_000
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


def from_npy(data: bytes, name: str, limits: BundleLimits) -> list[Item]:
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
        shape, fortran, dtype = reader[version[0]](file, max_header_size=_LONGEST_HEADER)
        if dtype.hasobject:
            raise ValueError("it holds Python objects; save numbers alone")
        content = data[file.tell() :]
        if any(side < 0 for side in shape) or len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content)} bytes do not make the shape {shape} of {dtype}")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # numpy's reader lets errors of Python's own parser through.
        raise RequestError(f"{name}: the .npy file cannot be read: {error}") from None
    return rows(array, name=name, limits=limits)


def from_safetensors(data: bytes, name: str, limits: BundleLimits) -> list[Item]:
    """The rows of the only tensor of a safetensors file, or of the one named ``input``.

    Raises:
        RequestError: it is damaged, or no batch of samples.
        TooLargeError: more rows than the limit.
    """
    try:
        tensors = load(data)
    except Exception as error:
        raise RequestError(f"{name}: the safetensors file cannot be read: {error}") from None
    if _INPUT in tensors:
        return _items(tensors[_INPUT], name, limits)
    if len(tensors) != 1:
        raise RequestError(
            f"{name}: the safetensors file holds {len(tensors)} tensors; send one, or name it "
            f"'{_INPUT}'"
        )
    return _items(next(iter(tensors.values())), name, limits)


def rows(array: NDArray[Any], *, name: str, limits: BundleLimits) -> list[Item]:
    """One sample for each row of an array.

    Args:
        array: (N, ...) uint8 pixels, or floats that are preprocessed already.
        name: of the batch.
        limits: on the number of rows.

    Raises:
        RequestError: other dtypes or shapes, or no rows.
        TooLargeError: more rows than the limit.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        native: NDArray[Any] = array.astype(np.float32)
    elif array.dtype == np.uint8:
        native = np.ascontiguousarray(array)
    else:
        raise RequestError(f"{name}: numbers of type {array.dtype} are neither; {_SHAPES}")
    return _items(torch.from_numpy(native.copy()), name, limits)


def _items(batch: Tensor, name: str, limits: BundleLimits) -> list[Item]:
    if batch.dtype not in _DTYPES:
        raise RequestError(f"{name}: numbers of type {batch.dtype} are neither; {_SHAPES}")
    pixels = batch.dtype is torch.uint8
    if batch.dim() == 3 and (not pixels or batch.shape[2] in (3, 4)):
        raise RequestError(
            f"{name}: shape {tuple(batch.shape)} is no batch of samples, but seems to be one "
            f"without its first dimension; add it (array[None]); {_SHAPES}"
        )
    if batch.dim() not in (3, 4):
        raise RequestError(f"{name}: shape {tuple(batch.shape)} is no batch of samples; {_SHAPES}")
    if 0 in batch.shape:
        raise RequestError(f"{name}: shape {tuple(batch.shape)} is empty; {_SHAPES}")
    limits.check_entries(len(batch), name)
    batch = _to_rgb(batch, name) if pixels else batch.to(torch.float32)
    return [Item(f"{name}[{index}]", row.clone()) for index, row in enumerate(batch)]


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
        color, alpha = batch[:, :3].to(torch.int32), batch[:, 3:].to(torch.int32)
        return ((color * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
    return batch
