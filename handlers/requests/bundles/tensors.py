"""Takes apart arrays: .npy and safetensors files, and the tensors of Open Inference requests."""

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
"""The bytes with which a .npy file begins."""

_INPUT_TENSOR = "input"
"""Name of the tensor that is read from a safetensors file with several tensors."""

_MAX_NPY_HEADER_BYTES = 10_000
"""Limit on the header of a .npy file, a Python literal; one with four dimensions has 128 bytes."""

_MAX_SAFETENSORS_HEADER_BYTES = 100_000
"""Enough for one tensor and its metadata. Reading a million empty tensors would take seconds."""

_MAX_PIXELS_BLENDED_AT_ONCE = 1 << 20
"""Putting transparent pixels on white takes 50 bytes of memory for each pixel of a band."""

_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ACCEPTED_ARRAYS = (
    "uint8 pixels are (N, H, W), (N, H, W, 3), (N, H, W, 4) or (N, 3, H, W); preprocessed inputs "
    "are floats (float16, bfloat16, float32 or float64) of shape (N, C, H, W)"
)


def is_safetensors(data: bytes) -> bool:
    """Return whether the bytes begin with the length of a header and the ``{`` of its JSON."""
    if len(data) < 10 or data[8:9] != b"{":
        return False
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= len(data) - 8


def from_npy(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each row of a .npy file.

    Args:
        data: the file.
        name: name of the part, for messages and samples.
        budget: budget of the request, in which each row counts as a sample.

    Raises:
        RequestError: the file is damaged, contains pickled objects, or is not a batch of samples.
        TooLargeError: the array has more rows than the request may have samples.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if version[0] not in reader:
            raise ValueError(f"version {version} is not supported")
        shape, fortran, dtype = reader[version[0]](file, max_header_size=_MAX_NPY_HEADER_BYTES)
        if dtype.hasobject:
            raise ValueError("it holds Python objects; save an array of numbers")
        content = memoryview(data)[file.tell() :]
        if any(side < 0 for side in shape) or len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content)} bytes do not make the shape {shape} of {dtype}")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # NumPy evaluates the header as a Python literal.
        raise RequestError(f"{name}: the .npy file cannot be read: {error}") from None
    return rows(array, name=name, budget=budget)


def from_safetensors(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each row of a safetensors file's only tensor, or of the one named ``input``.

    Args:
        data: the file.
        name: name of the part, for messages and samples.
        budget: budget of the request, in which each row counts as a sample.

    Raises:
        RequestError: the file is damaged, has several tensors and none named ``input``, or the
            tensor is not a batch of samples.
        TooLargeError: the tensor has more rows than the request may have samples.
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
    if _INPUT_TENSOR in tensors:
        return _tensor_rows(tensors[_INPUT_TENSOR], name, budget)
    if len(tensors) != 1:
        raise RequestError(
            f"{name}: the safetensors file holds {len(tensors)} tensors; send a single one, or "
            f"name the one to be read '{_INPUT_TENSOR}'"
        )
    return _tensor_rows(next(iter(tensors.values())), name, budget)


def rows(array: NDArray[Any], *, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each row of an array.

    Args:
        array: (N, ...), uint8 for pixels, floats for inputs that the client preprocessed itself.
        name: name of the part or tensor, for messages and samples.
        budget: budget of the request, in which each row counts as a sample.

    Raises:
        RequestError: the array has another dtype or shape, or no rows.
        TooLargeError: the array has more rows than the request may have samples.
    """
    is_pixels = array.dtype == np.uint8
    if not is_pixels and not (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        raise _wrong_dtype(name, array.dtype)
    _check_shape(array.shape, is_pixels, name, budget)
    native = np.ascontiguousarray(array) if is_pixels else array.astype(np.float32)
    if not native.flags.writeable:  # A view of the request's bytes: torch would warn about it.
        native = native.copy()
    return _to_items(torch.from_numpy(native), name)


def _tensor_rows(batch: Tensor, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each row of a tensor, as `rows` does for an array."""
    if batch.dtype not in _DTYPES:
        raise _wrong_dtype(name, batch.dtype)
    _check_shape(tuple(batch.shape), batch.dtype is torch.uint8, name, budget)
    return _to_items(batch, name)


def _wrong_dtype(name: str, dtype: object) -> RequestError:
    """Make the error for an array that holds neither pixels nor preprocessed inputs."""
    return RequestError(
        f"{name}: numbers of type {dtype} are neither pixels nor preprocessed inputs; "
        f"{_ACCEPTED_ARRAYS}"
    )


def _check_shape(shape: tuple[int, ...], is_pixels: bool, name: str, budget: RequestBudget) -> None:
    """Check the shape of an array, and count its rows as samples.

    Raises:
        RequestError: the array is not a batch of samples.
        TooLargeError: the array has more rows than the request may have samples.
    """
    if len(shape) == 3 and (not is_pixels or shape[2] in (3, 4)):
        raise RequestError(
            f"{name}: shape {shape} is not a batch of samples but seems to be a single sample; "
            f"add the first dimension (array[None]); {_ACCEPTED_ARRAYS}"
        )
    if len(shape) not in (3, 4):
        raise RequestError(f"{name}: shape {shape} is not a batch of samples; {_ACCEPTED_ARRAYS}")
    if 0 in shape:
        raise RequestError(f"{name}: shape {shape} is empty; {_ACCEPTED_ARRAYS}")
    budget.take_samples(shape[0], name)


def _to_items(batch: Tensor, name: str) -> list[Item]:
    """Split a batch of uint8 pixels or of floats into its rows."""
    batch = _to_rgb(batch, name) if batch.dtype is torch.uint8 else batch.to(torch.float32)
    return [Item(f"{name}[{index}]", row) for index, row in enumerate(batch)]


def _to_rgb(batch: Tensor, name: str) -> Tensor:
    """Convert uint8 pixels of any accepted shape to (N, 3, H, W); transparency is put on white."""
    if batch.dim() == 3:
        return batch.unsqueeze(1).expand(-1, 3, -1, -1)
    if batch.shape[3] in (1, 3, 4) and batch.shape[1] != 3:
        batch = batch.permute(0, 3, 1, 2)
    elif batch.shape[1] != 3 or batch.shape[3] in (1, 3, 4):
        raise RequestError(
            f"{name}: shape {tuple(batch.shape)} is not clearly pixels; {_ACCEPTED_ARRAYS}; send "
            "images whose height is 3 as (N, 3, H, W)"
            if batch.shape[1] == 3
            else f"{name}: shape {tuple(batch.shape)} is not pixels; {_ACCEPTED_ARRAYS}"
        )
    if batch.shape[1] == 1:
        return batch.expand(-1, 3, -1, -1)
    if batch.shape[1] == 4:
        return torch.stack([_on_white(row) for row in batch])
    return batch


def _on_white(pixels: Tensor) -> Tensor:
    """Put one image with transparency, uint8 (4, H, W), on white, band by band: uint8 (3, H, W)."""
    opaque = torch.empty((3, *pixels.shape[1:]), dtype=torch.uint8)
    band_height = max(1, _MAX_PIXELS_BLENDED_AT_ONCE // pixels.shape[2])
    for top in range(0, pixels.shape[1], band_height):
        band = pixels[:, top : top + band_height].to(torch.int32)
        color, alpha = band[:3], band[3:]
        opaque[:, top : top + band_height] = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return opaque
