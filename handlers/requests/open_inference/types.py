"""Requests and tensors of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

BYTES = "BYTES"
DTYPES: Mapping[str, str] = {
    "BOOL": "<?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""How numpy lays out each datatype; BYTES and BF16 have no such layout."""


@dataclass(frozen=True)
class InputTensor:
    """One input.

    Attributes:
        datatype: as sent.
        shape: as sent; that of `data`.
        data: BYTES are an object array of bytes, FP16 and BF16 float32, all others as sent.
        parameters: the input's own.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants, and whether as binary data."""

    name: str
    binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """One request.

    Attributes:
        id: to be sent back.
        parameters: of the request, the protocol's own included.
        inputs: in the order sent; names are all different.
        outputs: None asks for all.
        binary_output: outputs that are not named are wanted as binary data.
    """

    id: str | None
    parameters: Mapping[str, Any]
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] | None
    binary_output: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """One output; BYTES take an object array of bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array
    binary: bool = False
