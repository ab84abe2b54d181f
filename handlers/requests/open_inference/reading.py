"""From a body to a request."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...base.errors import RequestError, TooLargeError
from ...base.quoting import MAX_NAME, is_text, shown
from ...base.suggestions import nearest
from ..base64_text import decoded
from ..bounded_json import parse_json
from ..budget import RequestBudget
from .types import BYTES, DTYPES, Array, InferRequest, InputTensor, RequestedOutput

_DATATYPES = (*DTYPES, "BF16", BYTES)
_BINARY_ONLY = ("FP16", "BF16")
# KServe's client writes the model's name into the request as well; the route decides.
_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
_INPUT_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_MAX_ID_CHARACTERS = 1000
_MAX_OUTPUTS = 10_000
_MAX_DIMENSION_SIZE = 2**31
_MAX_DIMENSIONS = 8


def parse_infer_request(
    body: bytes | Mapping[str, Any], header_length: int | None, budget: RequestBudget
) -> InferRequest:
    """Read a request.

    Args:
        body: JSON as bytes or decoded; with a header length JSON and then binary data.
        header_length: bytes of JSON, from the header Inference-Header-Content-Length; None where
            all is JSON.
        budget: of the request. Texts (BYTES) are counted as samples by whoever takes them apart,
            but never more of them are read than there may be.

    Raises:
        RequestError: names the input or key that is wrong, and the remedy.
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
    tensors: list[InputTensor] = []
    names: set[str] = set()
    rest = binary
    max_samples = budget.limits.max_samples
    for position, entry in enumerate(_objects(body, "inputs", max_samples)):
        tensor, rest = _input(entry, f"inputs[{position}]", rest, max_samples)
        if tensor.name in names:
            raise RequestError(f"two inputs are named {shown(tensor.name)}; names must differ")
        names.add(tensor.name)
        tensors.append(tensor)
    if rest:
        raise RequestError(
            f"{len(rest)} bytes of binary data belong to no input; check each input's parameter "
            "binary_data_size"
        )
    return InferRequest(
        id=_id(body.get("id")),
        parameters=parameters,
        inputs=tuple(tensors),
        outputs=_requested(body),
        binary_output=_flag(parameters, "binary_data_output", "the request"),
    )


def _check_keys(content: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise RequestError(
                f"{where}: unknown key {shown(key)}{nearest(key, sorted(known))}; the keys "
                f"are {', '.join(sorted(known))}"
            )


def _objects(content: Mapping[str, Any], key: str, max_count: int) -> Sequence[Mapping[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list):
        raise RequestError(f'"{key}" must be a list of JSON objects')
    if len(found) > max_count:
        raise TooLargeError(f'"{key}" has {len(found)} entries, and may have {max_count}')
    if not all(isinstance(entry, dict) for entry in found):
        raise RequestError(f'"{key}" must be a list of JSON objects')
    return found


def _name(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not is_text(name):
        raise RequestError(
            f'{where}: "name" must be a Unicode text of 1 to {MAX_NAME} characters, not '
            f"{shown(name)}"
        )
    return name


def _parameters(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f'{where}: "parameters" must be a JSON object')
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{where}: parameter {name} must be true or false")
    return value


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_ID_CHARACTERS or not is_text(value):
        raise RequestError(
            f'"id" must be a Unicode text of at most {_MAX_ID_CHARACTERS} characters, without lone '
            "surrogates"
        )
    return value


def _requested(body: Mapping[str, Any]) -> tuple[RequestedOutput, ...] | None:
    if not body.get("outputs"):
        return None
    outputs: dict[str, RequestedOutput] = {}
    for position, entry in enumerate(_objects(body, "outputs", _MAX_OUTPUTS)):
        where = f"outputs[{position}]"
        _check_keys(entry, _OUTPUT_KEYS, where)
        name = _name(entry, where)
        if name in outputs:
            raise RequestError(f"output {shown(name)} is asked for twice; leave one out")
        parameters = _parameters(entry, where)
        outputs[name] = RequestedOutput(name, _flag(parameters, "binary_data", where))
    return tuple(outputs.values())


def _input(
    entry: Mapping[str, Any], where: str, binary: memoryview, max_samples: int
) -> tuple[InputTensor, memoryview]:
    """One input, and the binary data that are left for the next."""
    _check_keys(entry, _INPUT_KEYS, where)
    name = _name(entry, where)
    where = f"input {shown(name)}"
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise RequestError(
            f"{where}: unknown datatype {shown(datatype)}; it is one of {', '.join(_DATATYPES)}"
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
            raise RequestError(f'{where}: neither "data" nor the parameter binary_data_size')
        data = _from_json(entry["data"], datatype, shape, parameters, where)
        return InputTensor(name, datatype, shape, data, parameters), binary
    if "data" in entry:
        raise RequestError(f'{where}: "data" and binary_data_size exclude each other')
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary):
        raise RequestError(
            f"{where}: binary_data_size is {shown(size)}, and {len(binary)} bytes of binary data "
            "are left; send Inference-Header-Content-Length and the data after the JSON"
        )
    data = _from_binary(binary[:size], datatype, shape, where)
    return InputTensor(name, datatype, shape, data, parameters), binary[size:]


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in value
    ):
        raise RequestError(f'{where}: "shape" must be a list of numbers from 0 on')
    if len(value) > _MAX_DIMENSIONS:
        raise RequestError(
            f"{where}: {len(value)} dimensions; there can be {_MAX_DIMENSIONS} at most"
        )
    # Beside a 0, numpy multiplies the other sides all the same, and fails from 2**63 bytes on.
    if (
        any(side >= _MAX_DIMENSION_SIZE for side in value)
        or math.prod(map(_one_at_least, value)) >= 2**59
    ):
        raise RequestError(
            f"{where}: shape {shown(value)} is larger than any request; send the data's own shape"
        )
    return tuple(value)


def _one_at_least(side: int) -> int:
    return max(side, 1)


def _from_json(
    data: Any, datatype: str, shape: tuple[int, ...], parameters: Mapping[str, Any], where: str
) -> Array:
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
        return _objects_of([_text(value, in_base64, where) for value in values], shape)
    return _numbers(values, datatype, where).reshape(shape)


def _flat(data: list[Any]) -> Iterable[Any]:
    """Row by row, without recursion: nesting comes from the client."""
    pending = [iter(data)]
    while pending:
        for value in pending[-1]:
            if isinstance(value, list):
                pending.append(iter(value))
                break
            yield value
        else:
            pending.pop()


def _text(value: Any, in_base64: bool, where: str) -> bytes:
    if not isinstance(value, str):
        raise RequestError(f"{where}: BYTES in JSON are texts, not {type(value).__name__}")
    if not in_base64:
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError(
                f"{where}: a text holds a lone surrogate, which UTF-8 has not; send base64 or "
                "binary data"
            ) from None
    try:
        return decoded(value)
    except ValueError as error:
        raise RequestError(f"{where}: {error}") from None


def _numbers(values: list[Any], datatype: str, where: str) -> Array:
    """Numbers that fit the datatype as they are: nothing is rounded, wrapped or guessed."""
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


def _from_binary(data: memoryview, datatype: str, shape: tuple[int, ...], where: str) -> Array:
    elements = math.prod(shape)
    if datatype == BYTES:
        return _objects_of(_sized(data, elements, where), shape)
    itemsize = 2 if datatype == "BF16" else np.dtype(DTYPES[datatype]).itemsize
    if len(data) != elements * itemsize:
        raise RequestError(
            f"{where}: {len(data)} bytes for shape {list(shape)} of {datatype}, which takes "
            f"{elements * itemsize}"
        )
    if datatype == "BF16":
        # The upper half of a float32.
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if datatype == "BOOL":
        return np.frombuffer(data, np.uint8).astype(bool).reshape(shape)
    array = np.frombuffer(data, DTYPES[datatype])
    return (array.astype(np.float32) if datatype == "FP16" else array).reshape(shape)


def _sized(data: memoryview, elements: int, where: str) -> list[bytes]:
    """Texts, each after its length in four bytes, little-endian."""
    values: list[bytes] = []
    start = 0
    while start < len(data):
        if len(values) == elements:
            raise RequestError(f"{where}: more elements than the {elements} of its shape")
        if start + 4 > len(data):
            raise RequestError(f"{where}: the binary data end within a length")
        (size,) = struct.unpack_from("<I", data, start)
        start += 4
        if start + size > len(data):
            raise RequestError(
                f"{where}: element {len(values)} has {size} bytes by its length, and "
                f"{len(data) - start} are left"
            )
        values.append(bytes(data[start : start + size]))
        start += size
    if len(values) != elements:
        raise RequestError(f"{where}: {len(values)} elements, and the shape takes {elements}")
    return values


def _objects_of(values: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)
