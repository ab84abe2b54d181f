"""Reads a request from its body: JSON, which binary tensor data may follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...base.errors import RequestError, TooLargeError
from ...base.quoting import MAX_NAME_CHARACTERS, is_text, shown
from ...base.suggestions import nearest
from ..bounded_json import parse_json
from ..budget import RequestBudget
from .tensor_data import DATATYPES, from_binary, from_json
from .types import BYTES, InferRequest, InputTensor, RequestedOutput

_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
"""KServe's client also writes the model's name and version. The URL has them too and decides."""

_INPUT_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_MAX_ID_CHARACTERS = 1000
"""Limit on the identifier of a request, which the answer repeats."""

_MAX_OUTPUTS = 10_000
"""Limit on the outputs that a client names; an ensemble has some ten, and one for each member."""

_MAX_DIMENSIONS = 8
"""Limit on the dimensions of a tensor; a batch of images has four."""

_MAX_DIMENSION_SIZE = 2**31
"""Limit on a single dimension, so that multiplying the dimensions takes no time."""

_MAX_ELEMENTS = 2**59
"""NumPy cannot make an array of 2**63 bytes, and an element has up to 8 bytes.

NumPy multiplies the dimensions even if one of them is 0, and fails at the same size.
"""


def parse_infer_request(
    body: bytes | Mapping[str, Any], header_length: int | None, budget: RequestBudget
) -> InferRequest:
    """Parse an inference request.

    Args:
        body: the body in bytes, or its JSON if that is decoded already.
        header_length: number of bytes of JSON before the binary data, from the header
            Inference-Header-Content-Length; None if the whole body is JSON.
        budget: budget of the request. Samples are counted later, when the tensors are taken apart.
            A BYTES tensor with more elements than the limit on samples is not decoded.

    Raises:
        RequestError: an input or a key is wrong; the message names it.
        TooLargeError: the request has more values, inputs, outputs or BYTES than the limits allow.
    """
    binary = memoryview(b"")
    if isinstance(body, bytes):
        length = len(body) if header_length is None else header_length
        if not 0 <= length <= len(body):
            raise RequestError(
                f"Inference-Header-Content-Length is {length} and the body has {len(body)} bytes; "
                "it must be the length of the JSON that comes before the binary data"
            )
        binary = memoryview(body)[length:]
        body = parse_json(body[:length], budget.limits.max_json_values)
    if not isinstance(body, Mapping):
        raise RequestError('the request must be a JSON object with a list of "inputs"')
    _check_keys(body, _REQUEST_KEYS, "the request")
    parameters = _parameters(body, "the request")
    tensors: dict[str, InputTensor] = {}
    max_samples = budget.limits.max_samples
    for position, entry in enumerate(_objects(body, "inputs", max_samples)):
        tensor, binary = _input(entry, f"inputs[{position}]", binary, max_samples)
        if tensor.name in tensors:
            raise RequestError(f"two inputs are named {shown(tensor.name)}; names must differ")
        tensors[tensor.name] = tensor
    if binary:
        raise RequestError(
            f"{len(binary)} bytes of binary data belong to no input; check each input's parameter "
            "binary_data_size"
        )
    return InferRequest(
        id=_id(body.get("id")),
        parameters=parameters,
        inputs=tuple(tensors.values()),
        outputs=_requested_outputs(body),
        binary_output=_flag(parameters, "binary_data_output", "the request"),
    )


def _check_keys(content: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    """Check that an object has no key beside the allowed ones.

    Raises:
        RequestError: the object has another key.
    """
    for key in content:
        if key not in allowed:
            raise RequestError(
                f"{where}: unknown key {shown(key)}{nearest(key, sorted(allowed))}; the keys "
                f"are {', '.join(sorted(allowed))}"
            )


def _objects(content: Mapping[str, Any], key: str, max_count: int) -> Sequence[Mapping[str, Any]]:
    """Return the list of JSON objects under a key.

    Raises:
        RequestError: the value is not such a list.
        TooLargeError: the list has more than `max_count` objects.
    """
    objects = content.get(key)
    if not isinstance(objects, list):
        raise RequestError(f'"{key}" must be a list of JSON objects')
    if len(objects) > max_count:
        raise TooLargeError(f'"{key}" has {len(objects)} entries, and may have {max_count}')
    if not all(isinstance(entry, dict) for entry in objects):
        raise RequestError(f'"{key}" must be a list of JSON objects')
    return objects


def _name(entry: Mapping[str, Any], where: str) -> str:
    """Return the name of an input or output; RequestError if an answer could not repeat it."""
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not is_text(name):
        raise RequestError(
            f'{where}: "name" must be a Unicode text of 1 to {MAX_NAME_CHARACTERS} characters, not '
            f"{shown(name)}"
        )
    return name


def _parameters(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of the request, an input or an output; empty if there are none."""
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f'{where}: "parameters" must be a JSON object')
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str) -> bool:
    """Return the value of a parameter that is true or false; false if it is missing."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{where}: parameter {name} must be true or false")
    return value


def _id(value: Any) -> str | None:
    """Return the identifier of the request; RequestError if an answer could not repeat it."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_ID_CHARACTERS or not is_text(value):
        raise RequestError(
            f'"id" must be a Unicode text of at most {_MAX_ID_CHARACTERS} characters, without lone '
            "surrogates"
        )
    return value


def _requested_outputs(body: Mapping[str, Any]) -> tuple[RequestedOutput, ...] | None:
    """Return the outputs that the client names; None if it names none and so gets all of them."""
    if not body.get("outputs"):
        return None
    outputs: dict[str, RequestedOutput] = {}
    for position, entry in enumerate(_objects(body, "outputs", _MAX_OUTPUTS)):
        where = f"outputs[{position}]"
        _check_keys(entry, _OUTPUT_KEYS, where)
        name = _name(entry, where)
        if name in outputs:
            raise RequestError(f"output {shown(name)} is requested twice; name it once")
        parameters = _parameters(entry, where)
        outputs[name] = RequestedOutput(name, _flag(parameters, "binary_data", where))
    return tuple(outputs.values())


def _input(
    entry: Mapping[str, Any], where: str, binary: memoryview, max_samples: int
) -> tuple[InputTensor, memoryview]:
    """Read one input tensor.

    Args:
        entry: the JSON of the tensor.
        where: position of the tensor, for messages.
        binary: binary data that no tensor before this one has used.
        max_samples: limit on the elements of a BYTES tensor.

    Returns:
        The tensor, and the binary data after those of the tensor.
    """
    _check_keys(entry, _INPUT_KEYS, where)
    name = _name(entry, where)
    where = f"input {shown(name)}"
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise RequestError(
            f"{where}: unknown datatype {shown(datatype)}; it is one of {', '.join(DATATYPES)}"
        )
    shape = _shape(entry.get("shape"), where)
    if datatype == BYTES and math.prod(shape) > max_samples:
        raise TooLargeError(
            f"{where}: {math.prod(shape)} samples in one request; the limit is {max_samples} "
            "(limits.max_samples in the spec): split the request"
        )
    parameters = _parameters(entry, where)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise RequestError(
                f'{where}: neither "data" nor the parameter binary_data_size is there; send one'
            )
        data = from_json(entry["data"], datatype, shape, parameters, where)
        return InputTensor(name, datatype, shape, data, parameters), binary
    if "data" in entry:
        raise RequestError(
            f'{where}: "data" and binary_data_size exclude each other; leave one out'
        )
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary):
        raise RequestError(
            f"{where}: binary_data_size is {shown(size)}, and {len(binary)} bytes of binary data "
            "are left; send Inference-Header-Content-Length and the data after the JSON"
        )
    data = from_binary(binary[:size], datatype, shape, where)
    return InputTensor(name, datatype, shape, data, parameters), binary[size:]


def _shape(value: Any, where: str) -> tuple[int, ...]:
    """Return the shape of a tensor, after a check that NumPy can make an array of it.

    Raises:
        RequestError: the value is no shape, or the shape is larger than any array.
    """
    if not isinstance(value, list) or not all(
        isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in value
    ):
        raise RequestError(f'{where}: "shape" must be a list of whole numbers that are 0 or more')
    if len(value) > _MAX_DIMENSIONS:
        raise RequestError(
            f"{where}: {len(value)} dimensions; there can be {_MAX_DIMENSIONS} at most"
        )
    if (
        any(side >= _MAX_DIMENSION_SIZE for side in value)
        or math.prod(max(side, 1) for side in value) >= _MAX_ELEMENTS
    ):
        raise RequestError(
            f"{where}: shape {shown(value)} is larger than any request; send the data's own shape"
        )
    return tuple(value)
