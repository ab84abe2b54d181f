"""Requests and answers of Open Inference v2 are those of the specification and Triton's client."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, from_dtype

from torchserve_ensemble.handlers.base.errors import RequestError
from torchserve_ensemble.handlers.requests.budget import RequestBudget
from torchserve_ensemble.handlers.requests.open_inference import (
    InferRequest,
    OutputTensor,
    encode_infer_response,
    parse_infer_request,
)
from torchserve_ensemble.handlers.spec import Limits

TRITON = {"UINT8": "u1", "INT64": "i8", "FP32": "f4", "FP64": "f8", "BOOL": "?", "FP16": "f2"}


def parse(body: Any, header_length: int | None) -> InferRequest:
    return parse_infer_request(body, header_length, RequestBudget(Limits()))


def entry(**changes: Any) -> dict[str, Any]:
    """Make an input of a request; a key with the value ``...`` is left out."""
    full = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]} | changes
    return {key: value for key, value in full.items() if value is not ...}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_a_request_in_json() -> None:
    body = request(
        entry(),
        entry(name="y", datatype="FP32", shape=[2, 2], data=[[0.5, 1], [2, 3]]),
        entry(name="z", datatype="BYTES", shape=[1], data=["näh"]),
        id="7",
        parameters={"policy": "any"},
        outputs=[{"name": "label"}, {"name": "score", "parameters": {"binary_data": True}}],
    )
    parsed = parse(body, None)
    assert (parsed.id, parsed.parameters) == ("7", {"policy": "any"})
    x, y, z = parsed.inputs
    assert (x.data.dtype, x.data.tolist()) == (np.dtype("<i4"), [1, 2])
    assert y.data.tolist() == [[0.5, 1], [2, 3]]
    assert z.data.tolist() == ["näh".encode()]
    assert parsed.outputs is not None
    assert [(o.name, o.binary) for o in parsed.outputs] == [("label", False), ("score", True)]


def test_golden_bytes_of_a_binary_request() -> None:
    header = (
        b'{"inputs":[{"name":"a","shape":[2],"datatype":"BYTES",'
        b'"parameters":{"binary_data_size":11}},{"name":"b","shape":[1,2],"datatype":"FP32",'
        b'"parameters":{"binary_data_size":8}}]}'
    )
    body = header + b"\x01\x00\x00\x00A\x02\x00\x00\x00BC" + b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    first, second = parse(body, len(header)).inputs
    assert first.data.tolist() == [b"A", b"BC"]
    assert second.data.tolist() == [[1.0, -2.0]]


def test_golden_bytes_of_a_binary_response() -> None:
    label = np.array([b"ab"], dtype=object)
    body, length = encode_infer_response(
        model_name="m",
        model_version="1.0",
        id="7",
        parameters={},
        outputs=[
            OutputTensor("label", "BYTES", (1,), label, binary=True),
            OutputTensor("score", "FP32", (2,), np.array([0.1, np.nan], "f4")),
        ],
    )
    header = (
        b'{"model_name":"m","model_version":"1.0","id":"7","parameters":{},"outputs":['
        b'{"name":"label","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}},'
        b'{"name":"score","shape":[2],"datatype":"FP32","data":[0.1,null]}]}'
    )
    assert (body, length) == (header + b"\x02\x00\x00\x00ab", len(header))


def test_base64_as_mlserver_and_kserve_send_it() -> None:
    sent = entry(datatype="BYTES", shape=[1], data=["/9j/"], parameters={"content_type": "base64"})
    assert parse(request(sent), None).inputs[0].data.tolist() == [b"\xff\xd8\xff"]


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    sent = entry(datatype="BF16", shape=[2], data=..., parameters={"binary_data_size": 4})
    header = request(sent)
    body = header + struct.pack("<HH", 0x3F80, 0xC000)
    assert parse(body, len(header)).inputs[0].data.tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid"),
        (b"[]", "JSON object"),
        (b"{}", '"inputs" must be a list'),
        (request(entry(), more=1), "unknown key 'more'"),
        (request(entry(shap=[2])), "did you mean 'shape'"),
        (request(entry(name=...)), '"name" must be'),
        (request(entry(datatype="FLOAT")), "input 'x': unknown datatype 'FLOAT'"),
        (request(entry(shape=[-1])), '"shape" must be'),
        (request(entry(shape=[1] * 9)), "9 dimensions"),
        (request(entry(shape=[10**30])), "larger than any request"),
        (request(entry(shape=[3])), "2 values for shape [3]"),
        (request(entry(data=...)), 'neither "data"'),
        (request(entry(data="ab")), '"data" must be a list'),
        (request(entry(datatype="UINT8", data=[1, 300])), "300 is no UINT8 (0 to 255)"),
        (request(entry(datatype="UINT8", data=[1, -1])), "-1 is no UINT8"),
        (request(entry(datatype="UINT64", data=[1, 2**64])), "is no UINT64"),
        (request(entry(datatype="BOOL", data=[1, 0])), "1 is no BOOL"),
        (request(entry(data=[1, True])), "True is no INT32"),
        (request(entry(data=[1, 1.5])), "1.5 is no INT32"),
        (request(entry(datatype="FP32", data=[1, float("nan")])), "not finite"),
        (request(entry(datatype="FP32", data=[1, 1e300])), "not finite"),
        (request(entry(datatype="FP32", data=[1, 10**400])), "too large"),
        (request(entry(datatype="FP16")), "no JSON form"),
        (request(entry(datatype="BYTES")), "BYTES in JSON are texts"),
        (request(entry(), entry()), "two inputs are named 'x'"),
        (request(entry(), id=7), '"id" must be'),
        (request(entry(parameters={"binary_data_size": 4})), "exclude each other"),
        (request(entry(data=..., parameters={"binary_data_size": 4})), "0 bytes of binary data"),
        (request(entry(), outputs=[{"nam": "a"}]), "outputs[0]: unknown key 'nam'"),
    ],
)
def test_mistakes_are_named(body: bytes, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body, None)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("datatype", "binary", "words"),
    [
        ("INT32", b"1234", "4 bytes for shape [2] of INT32, which takes 8"),
        ("INT32", b"123456789", "1 bytes of binary data belong to no input"),
        ("BYTES", b"\x01\x00", "end within a length"),
        ("BYTES", b"\x09\x00\x00\x00a", "9 bytes by its length, and 1 are left"),
        ("BYTES", b"\x01\x00\x00\x00a", "1 elements, and the shape takes 2"),
    ],
)
def test_binary_data_of_a_wrong_length_are_refused(
    datatype: str, binary: bytes, words: str
) -> None:
    size = min(len(binary), 8)
    header = request(entry(datatype=datatype, data=..., parameters={"binary_data_size": size}))
    with pytest.raises(RequestError) as caught:
        parse(header + binary, len(header))
    assert words in caught.value.message


@pytest.mark.parametrize("length", [-1, 10**9])
def test_a_header_length_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        parse(request(entry()), length)


@given(data=st.data(), datatype=st.sampled_from(sorted(TRITON)), binary=st.booleans())
def test_requests_of_tritons_client_are_read(
    data: st.DataObject, datatype: str, binary: bool
) -> None:
    binary = binary or datatype == "FP16"
    finite = from_dtype(np.dtype(TRITON[datatype]), allow_nan=False, allow_infinity=False)
    array = data.draw(
        arrays(TRITON[datatype], data.draw(st.sampled_from([(1,), (2, 3)])), elements=finite)
    )
    sent = triton.InferInput("x", list(array.shape), datatype)
    sent.set_data_from_numpy(array, binary_data=binary)
    body, length = triton.InferenceServerClient.generate_request_body([sent], request_id="9")
    parsed = parse(body, length)
    assert parsed.id == "9"
    assert np.array_equal(parsed.inputs[0].data, array)


@given(data=st.data(), binary=st.booleans())
def test_tritons_client_reads_the_answers(data: st.DataObject, binary: bool) -> None:
    floats = from_dtype(np.dtype("f4"), allow_nan=False, allow_infinity=False)
    scores = data.draw(arrays("f4", (2, 3), elements=floats))
    labels = data.draw(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=2, max_size=2)
    )
    column = np.array([label.encode() for label in labels], dtype=object)
    body, length = encode_infer_response(
        model_name="m",
        model_version="1.0",
        id=None,
        parameters={},
        outputs=[
            OutputTensor("scores", "FP32", (2, 3), scores, binary),
            OutputTensor("label", "BYTES", (2,), column, binary),
        ],
    )
    result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    assert np.array_equal(result.as_numpy("scores"), scores)
    read = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("label").tolist()]
    assert read == labels


HEADER = request(
    entry(datatype="BYTES", shape=[1], data=..., parameters={"binary_data_size": 5}),
    entry(name="y", datatype="FP32", data=[1, 2]),
)


@settings(max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 400),
    length=st.one_of(st.none(), st.just(len(HEADER)), st.integers(-5, 500)),
)
def test_damage_is_the_clients_mistake(
    flips: list[tuple[int, int]], cut: int, length: int | None
) -> None:
    body = bytearray(HEADER + b"\x01\x00\x00\x00A")
    for position, value in flips:
        body[position % len(body)] = value
    try:
        parse(bytes(body[:cut]), length)
    except RequestError as error:
        assert error.message


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["INT32", "BYTES"])
@pytest.mark.parametrize(
    "shape", [[0, 10**30], [0, 2**62, 2**62], [10**4000, 10**4000], [0] + [2**30] * 7]
)
def test_a_huge_shape_is_the_clients_mistake(shape: list[int], datatype: str, binary: bool) -> None:
    with_data: dict[str, Any] = {"data": []}
    if binary:
        with_data = {"data": ..., "parameters": {"binary_data_size": 0}}
    header = request(entry(shape=shape, datatype=datatype, **with_data))
    with pytest.raises(RequestError, match="input 'x': shape .* larger than any request"):
        parse(header, len(header))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (request(entry(), id="\ud800"), '"id" must be'),
        (request(entry(name="\ud800")), '"name" must be'),
        (request(entry(), outputs=[{"name": "\ud800"}]), '"name" must be'),
        (request(entry(datatype="\ud800")), "unknown datatype"),
        (request(entry(**{"\ud800": 1})), "unknown key"),
        (request(entry(datatype="BYTES", data=["\ud800", ""])), "lone surrogate"),
    ],
)
def test_half_a_character_is_refused_in_a_message_that_utf8_can_write(
    body: bytes, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body, None)
    assert words in caught.value.message
    assert caught.value.message.encode("utf-8")


@pytest.mark.parametrize("changes", [{"datatype": "a" * 10**6}, {"data": ["a" * 10**6, 1]}])
def test_messages_stay_short(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parse(request(entry(**changes)), None)
    assert len(caught.value.message) < 400


@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 2**31, 2**62, 2**70, 10**4000]), max_size=9),
    data=st.lists(st.one_of(st.integers(), st.text(st.characters(), max_size=3)), max_size=4),
    datatype=st.sampled_from(["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP32", "BYTES", "?"]),
    size=st.one_of(st.none(), st.integers(-1, 9)),
    binary=st.binary(max_size=9),
)
def test_wellformed_json_of_any_content_is_read_or_refused(
    shape: list[int], data: list[Any], datatype: str, size: int | None, binary: bytes
) -> None:
    given_data = {"data": data} if size is None else {"data": ...}
    more = {} if size is None else {"parameters": {"binary_data_size": size}}
    header = request(entry(shape=shape, datatype=datatype, **given_data, **more))
    try:
        parse(header + binary, len(header))
    except RequestError as error:
        assert error.message.encode("utf-8")
