"""Decodes the data of a tensor, from JSON or from binary data, to an array of its shape."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...base.errors import RequestError
from ...base.quoting import shown
from ..base64_text import decode_base64
from .types import BYTES, DTYPES, Array

DATATYPES = (*DTYPES, "BF16", BYTES)
"""All datatypes of the protocol."""

_BINARY_ONLY = ("FP16", "BF16")
"""Datatypes for which the protocol defines no JSON."""


def from_json(
    data: Any, datatype: str, shape: tuple[int, ...], parameters: Mapping[str, Any], where: str
) -> Array:
    """Decode the ``data`` of a tensor in JSON.

    Args:
        data: a flat or nested list of the elements, row by row.
        datatype: one of `DATATYPES`.
        shape: shape of the tensor; it need not be that of the nested lists.
        parameters: parameters of the tensor; ``content_type`` says whether BYTES are in base64.
        where: name of the tensor, for messages.

    Raises:
        RequestError: the data do not fit the shape or the datatype.
    """
    if datatype in _BINARY_ONLY:
        raise RequestError(f"{where}: {datatype} has no JSON form; send it as binary data, or FP32")
    if not isinstance(data, list):
        raise RequestError(f'{where}: "data" must be a list')
    values = list(_flat(data))
    if len(values) != math.prod(shape):
        raise RequestError(
            f"{where}: {len(values)} values for shape {list(shape)}, which takes {math.prod(shape)}"
        )
    if datatype == BYTES:
        in_base64 = parameters.get("content_type") == "base64"
        return _bytes_array([_bytes(value, in_base64, where) for value in values], shape)
    return _numbers(values, datatype, where).reshape(shape)


def from_binary(data: memoryview, datatype: str, shape: tuple[int, ...], where: str) -> Array:
    """Decode the binary data of a tensor: little-endian numbers, or BYTES with their lengths.

    Args:
        data: all bytes of the tensor.
        datatype: one of `DATATYPES`.
        shape: shape of the tensor.
        where: name of the tensor, for messages.

    Raises:
        RequestError: the number of bytes or of elements does not fit the shape.
    """
    num_elements = math.prod(shape)
    if datatype == BYTES:
        return _bytes_array(_split_by_lengths(data, num_elements, where), shape)
    itemsize = 2 if datatype == "BF16" else np.dtype(DTYPES[datatype]).itemsize
    if len(data) != num_elements * itemsize:
        raise RequestError(
            f"{where}: {len(data)} bytes for shape {list(shape)} of {datatype}, which takes "
            f"{num_elements * itemsize}"
        )
    if datatype == "BF16":
        # A bfloat16 is the upper half of a float32.
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if datatype == "BOOL":
        return np.frombuffer(data, np.uint8).astype(bool).reshape(shape)
    array = np.frombuffer(data, DTYPES[datatype])
    return (array.astype(np.float32) if datatype == "FP16" else array).reshape(shape)


def _flat(data: list[Any]) -> Iterable[Any]:
    """Yield the elements of nested lists in order, without recursion: clients choose the depth."""
    pending = [iter(data)]
    while pending:
        for value in pending[-1]:
            if isinstance(value, list):
                pending.append(iter(value))
                break
            yield value
        else:
            pending.pop()


def _bytes(value: Any, in_base64: bool, where: str) -> bytes:
    """Decode one element of a BYTES tensor in JSON: base64, or text whose UTF-8 is the element."""
    if not isinstance(value, str):
        raise RequestError(f"{where}: BYTES in JSON are texts, not {type(value).__name__}")
    if not in_base64:
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError(
                f"{where}: a text holds a lone surrogate, which UTF-8 cannot encode; send base64 "
                "or binary data"
            ) from None
    try:
        return decode_base64(value)
    except ValueError as error:
        raise RequestError(f"{where}: {error}") from None


def _numbers(values: list[Any], datatype: str, where: str) -> Array:
    """Make an array of numbers that all fit the datatype: none is wrapped, truncated or guessed."""
    dtype = np.dtype(DTYPES[datatype])
    allowed: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    for value in values:
        if not isinstance(value, allowed) or (isinstance(value, bool) and dtype.kind != "b"):
            raise RequestError(f"{where}: {shown(value)} is no {datatype}")
    if dtype.kind in "iu" and values:
        bounds = np.iinfo(dtype)
        worst = min(values) if min(values) < bounds.min else max(values)
        if not bounds.min <= worst <= bounds.max:
            raise RequestError(
                f"{where}: {shown(worst)} is no {datatype} ({bounds.min} to {bounds.max})"
            )
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError:
        raise RequestError(f"{where}: a number is too large for {datatype}") from None
    if dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise RequestError(f"{where}: a number is not finite as {datatype}")
    return array


def _split_by_lengths(data: memoryview, num_elements: int, where: str) -> list[bytes]:
    """Split binary data into elements, each of which follows its length in four bytes (``<I``).

    Raises:
        RequestError: the data end within an element, or have another number of elements.
    """
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        if len(elements) == num_elements:
            raise RequestError(f"{where}: more elements than the {num_elements} of its shape")
        if start + 4 > len(data):
            raise RequestError(f"{where}: the binary data end within a length")
        (size,) = struct.unpack_from("<I", data, start)
        start += 4
        if start + size > len(data):
            raise RequestError(
                f"{where}: element {len(elements)} has {size} bytes by its length, and "
                f"{len(data) - start} are left"
            )
        elements.append(bytes(data[start : start + size]))
        start += size
    if len(elements) != num_elements:
        raise RequestError(f"{where}: {len(elements)} elements, and the shape takes {num_elements}")
    return elements


def _bytes_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    """Make an object array of bytes; NumPy would cut zeros off the end of its own bytes type."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
