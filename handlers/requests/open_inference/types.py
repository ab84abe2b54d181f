"""Requests and tensors of the protocol, and its datatypes."""

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
"""The NumPy dtype of each datatype that has one; BYTES and BF16 have none."""


@dataclass(frozen=True)
class InputTensor:
    """One input tensor of a request.

    Attributes:
        name: name of the tensor; no other input of the request has it.
        datatype: datatype that the client declared.
        shape: shape of the tensor, which is also that of `data`.
        data: the elements: bytes in an object array for BYTES, float32 for FP16 and BF16, and the
            dtype of `DTYPES` for all other datatypes.
        parameters: parameters of this tensor.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client names.

    Attributes:
        name: name of the output.
        binary: whether the client wants it as binary data and not as JSON.
    """

    name: str
    binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """One inference request.

    Attributes:
        id: identifier that the answer repeats; None if the client sent none.
        parameters: parameters of the request, options as well as those of the protocol.
        inputs: the input tensors in the order in which they were sent.
        outputs: the outputs that the client names; None if it names none and gets all.
        binary_output: whether a client that names no outputs gets them as binary data.
    """

    id: str | None
    parameters: Mapping[str, Any]
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] | None
    binary_output: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """One output tensor of an answer.

    Attributes:
        name: name of the output.
        datatype: datatype of the protocol: a key of `DTYPES`, or `BYTES`.
        shape: shape of the tensor.
        data: the elements; for BYTES an object array of bytes.
        binary: whether to write it as binary data and not as JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array
    binary: bool = False
