"""Makes JSON and Open Inference requests that are deep or long, or that contradict themselves."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any

from .images import gray
from .wire import PREDICT, V2, Request, document, instances, v2_binary, v2_images, v2_json

_DEEP = b"[" * 1_000 + b"]" * 1_000


def _instances(inside: bytes, more: bytes = b"") -> Request:
    return document(b'{"instances": [' + inside + b"]" + more + b"}")


def _encoded() -> bytes:
    return base64.b64encode(gray())


def _tensor(datatype: str = "UINT8", shape: object = (1, 8, 8, 3), **keys: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": datatype, "shape": shape, **keys}


def _inputs(*tensors: dict[str, Any], data: bytes = b"", **keys: Any) -> Request:
    return v2_binary({"inputs": list(tensors), **keys}, data)


def _json_inputs(*tensors: dict[str, Any], **keys: Any) -> Request:
    return document({"inputs": list(tensors), **keys}, path=V2)


def _sized(size: int, **keys: Any) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size}, **keys}


def _header_length(text: str) -> Request:
    request = v2_images(gray())
    headers = [(n, text if n.startswith("Inference") else v) for n, v in request.headers]
    return Request(request.body, tuple(headers), request.path, request.parts)


def _outputs(*names: str, **keys: Any) -> Request:
    return v2_images(gray(), outputs=[{"name": name} for name in names], **keys)


def _many_inputs(count: int, name: str = "{}") -> Request:
    image = gray()
    one = struct.pack("<I", len(image)) + image
    tensors = [
        _tensor("BYTES", [1], **_sized(len(one))) | {"name": name.format(i)} for i in range(count)
    ]
    return v2_binary({"inputs": tensors}, one * count)


JSON: Mapping[str, Callable[[], Request]] = {
    "json-deep-instance": lambda: _instances(_DEEP),
    "json-100000-deep-instance": lambda: _instances(b"[" * 100_000 + b"]" * 100_000),
    "json-deep-objects": lambda: _instances(b'{"a":' * 900 + b"1" + b"}" * 900),
    "json-10-million-deep": lambda: document(b"[" * 10_000_000),
    "json-deep-parameters": lambda: _instances(
        b'{"b64":"' + _encoded() + b'"}', b',"parameters":{"policy_parameters":' + _DEEP + b"}"
    ),
    "json-empty-objects": lambda: _instances(b"{}," * 9_000_000 + b"{}"),
    "json-empty-lists": lambda: document(b"[" + b"[]," * 9_000_000 + b"[]]"),
    "json-zeros": lambda: _instances(b"[[[" + b"0," * 14_000_000 + b"0]]]"),
    "json-floats": lambda: _instances(b"[[[" + b"0.1," * 6_000_000 + b"0.1]]]"),
    "json-many-instances": lambda: _instances(b"0," * 14_000_000 + b"0"),
    "json-a-million-keys": lambda: _instances(
        b"{" + b",".join(b'"%d":0' % i for i in range(1_500_000)) + b"}"
    ),
    "json-a-million-keys-beside": lambda: _instances(
        b"1", b"".join(b',"%d":0' % i for i in range(1_500_000))
    ),
    "json-a-million-parameters": lambda: _instances(
        b"1", b',"parameters":{' + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}"
    ),
    "json-duplicate-keys": lambda: document(b"{" + b'"instances":[],' * 1_500_000 + b'"a":1}'),
    "json-long-integer": lambda: _instances(b"9" * 20_000_000),
    "json-4000-digits": lambda: _instances(b"[[[" + b"9" * 4_000 + b"]]]"),
    "json-4000-digits-many": lambda: _instances(
        b"[[[" + b",".join([b"9" * 4_000] * 5_000) + b"]]]"
    ),
    "json-long-fraction": lambda: _instances(b"[[[0." + b"1" * 20_000_000 + b"]]]"),
    "json-exponents": lambda: _instances(b"[[[1e999]]]"),
    "json-nan": lambda: _instances(b"[[[NaN, Infinity, -Infinity]]]"),
    "json-negative-zero": lambda: _instances(b"[[[-0]]]"),
    "json-surrogate-key": lambda: _instances(b"1", b',"\\ud800":1'),
    "json-surrogate-value": lambda: _instances(b'{"b64":"\\ud800"}'),
    "json-surrogate-option": lambda: _instances(b"1", b',"parameters":{"\\udfff":"\\ud800"}'),
    "json-surrogate-policy": lambda: instances(gray(), parameters={"policy": "\ud800"}),
    "json-surrogate-stream": lambda: instances(gray(), parameters={"stream": "\ud800"}),
    "json-long-key": lambda: _instances(b"1", b',"' + b"k" * 25_000_000 + b'":1'),
    "json-long-option": lambda: _instances(b"1", b',"parameters":{"' + b"k" * 25_000_000 + b'":1}'),
    "json-escapes": lambda: _instances(b'"' + b"\\u0041" * 4_000_000 + b'"'),
    "json-long-string": lambda: _instances(b'"' + b"A" * 28_000_000 + b'"'),
    "json-base64-of-spaces": lambda: _instances(b'{"b64":"' + b" " * 28_000_000 + b'"}'),
    "json-base64-newlines": lambda: _instances(
        b'{"b64":"' + b"\\n".join([_encoded()] * 200_000)[:10_000_000] + b'"}'
    ),
    "json-base64-padding": lambda: _instances(b'{"b64":"' + b"=" * 28_000_000 + b'"}'),
    "json-base64-256-x": lambda: _instances(
        b",".join([b'{"b64":"' + b"A" * 100_000 + b'"}'] * 256)
    ),
    "json-base64-url": lambda: _instances(b'{"b64":"-_-_"}'),
    "json-data-uri": lambda: _instances(b'{"b64":"data:image/png;base64,' + _encoded() + b'"}'),
    "json-bytes-not-utf8": lambda: document(b'{"instances": ["\xff\xfe"]}'),
    "json-utf16": lambda: document('{"instances": []}'.encode("utf-16")),
    "json-bom": lambda: document(b"\xef\xbb\xbf" + b'{"instances": []}'),
    "json-nul": lambda: document(b'{"instances": [\0]}'),
    "json-empty": lambda: document(b""),
    "json-no-instances": lambda: document({"instances": []}),
    "json-numbers-alone": lambda: document(b"1", path=PREDICT),
    "json-wide-sample": lambda: _instances(b"[[[" + b"0," * 999_999 + b"0]]]"),
    "json-ragged": lambda: _instances(b"[[[1],[1,2]]]"),
    "json-mixed": lambda: _instances(b'[[["a", null, {}, true]]]'),
    "json-unfinished": lambda: document(b'{"instances": [' + b'{"a":[' * 100_000),
    "json-both-protocols": lambda: document(
        {"instances": [1], "inputs": [_tensor("FP32", [1], data=[1])]}
    ),
    "json-65536-v1-instances-of-nothing": lambda: _instances(b",".join([b'{"b64":""}'] * 65_536)),
    "json-text-plain": lambda: document(b"{" * 1_000_000, content_type="text/plain"),
    "json-utf8-type": lambda: document(
        b'{"instances": [1]}', content_type="application/json; charset=utf-7"
    ),
}
"""Requests of KServe v1, and JSON that belongs to no protocol."""

INFER: Mapping[str, Callable[[], Request]] = {
    "v2-input-name": lambda: _inputs(
        _tensor("BYTES", [250], **_sized(1250)) | {"name": "n" * 1_000_000},
        data=b"\1\0\0\0x" * 250,
    ),
    "v2-input-name-good": lambda: _inputs(
        _tensor(shape=[256, 2, 2, 3], **_sized(256 * 12)) | {"name": "n" * 1_000_000},
        data=bytes(256 * 12),
    ),
    "v2-input-name-json": lambda: _json_inputs(
        _tensor("BYTES", [250], data=["x"] * 250) | {"name": "é" * 500_000}
    ),
    "v2-input-names-of-300": lambda: _many_inputs(256, "{:0300d}"),
    "v2-input-name-surrogate": lambda: _json_inputs(
        _tensor("BYTES", [1], data=["x"]) | {"name": "\ud800"}
    ),
    "v2-input-name-control": lambda: _json_inputs(
        _tensor("BYTES", [1], data=["x"]) | {"name": "\x1b[2J\r\n"}
    ),
    "v2-20000-inputs": lambda: _many_inputs(20_000),
    "v2-20000-empty-inputs": lambda: _inputs(
        *[_tensor("BYTES", [0], **_sized(0)) | {"name": str(i)} for i in range(20_000)]
    ),
    "v2-equal-input-names": lambda: _many_inputs(20_000, "x"),
    "v2-outputs": lambda: _outputs(*[f"o{i}" for i in range(200_000)]),
    "v2-outputs-duplicated": lambda: _outputs(*["a.scores"] * 200_000),
    "v2-outputs-duplicated-256": lambda: v2_images(
        *[gray()] * 256, outputs=[{"name": "label"}] * 20_000
    ),
    "v2-output-name": lambda: _outputs("o" * 10_000_000),
    "v2-output-name-surrogate": lambda: _outputs("\ud800"),
    "v2-output-parameters": lambda: v2_images(
        gray(), outputs=[{"name": "label", "parameters": {str(i): i for i in range(500_000)}}]
    ),
    "v2-empty-texts": lambda: _inputs(
        _tensor("BYTES", [7_000_000], **_sized(28_000_000)), data=bytes(28_000_000)
    ),
    "v2-empty-texts-json": lambda: _json_inputs(
        _tensor("BYTES", [3_000_000], data=[""] * 3_000_000)
    ),
    "v2-many-in-one-row": lambda: _inputs(
        _tensor("BYTES", [1, 1, 300], **_sized(300 * 5)), data=b"\1\0\0\0x" * 300
    ),
    "v2-length-lies": lambda: _inputs(
        _tensor("BYTES", [1], **_sized(8)), data=b"\xff\xff\xff\xff" + bytes(4)
    ),
    "v2-length-within-length": lambda: _inputs(_tensor("BYTES", [1], **_sized(2)), data=b"\1\0"),
    "v2-shape-product": lambda: _inputs(_tensor(shape=[2**30, 2**30], **_sized(0))),
    "v2-shape-with-zero": lambda: _inputs(_tensor(shape=[0, 2**30, 2**28], **_sized(0))),
    "v2-shape-of-digits": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"UINT8","shape":[' + b"9" * 4_000 + b'],"data":[]}]}',
        path=V2,
    ),
    "v2-shape-list": lambda: _json_inputs(_tensor(shape=[1] * 3_000_000, data=[1])),
    "v2-shape-negative": lambda: _json_inputs(_tensor(shape=[-1], data=[1])),
    "v2-shape-deep": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"UINT8","shape":' + b"[" * 900 + b"]" * 900 + b"}]}",
        path=V2,
    ),
    "v2-data-size-digits": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":'
        + b"9" * 4_000
        + b"}}]}",
        path=V2,
    ),
    "v2-data-deep": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"data":' + _DEEP + b"}]}", path=V2
    ),
    "v2-data-ints": lambda: _json_inputs(_tensor(shape=[1, 1, 5_000_000], data=[0] * 5_000_000)),
    "v2-data-lists": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"data":['
        + b"[]," * 8_000_000
        + b"[]]}]}",
        path=V2,
    ),
    "v2-wide-pixels": lambda: _inputs(
        _tensor(shape=[1, 1, 25_000_000], **_sized(25_000_000)), data=bytes(25_000_000)
    ),
    "v2-256-wide-pixels": lambda: _inputs(
        _tensor(shape=[256, 1, 100_000], **_sized(25_600_000)), data=bytes(25_600_000)
    ),
    "v2-bool": lambda: _inputs(
        _tensor("BOOL", [25_000_000], **_sized(25_000_000)), data=bytes(25_000_000)
    ),
    "v2-bfloat16": lambda: _inputs(
        _tensor("BF16", [4, 3, 1000, 1000], **_sized(24_000_000)), data=bytes(24_000_000)
    ),
    "v2-half": lambda: _inputs(
        _tensor("FP16", [4, 3, 1000, 1000], **_sized(24_000_000)), data=bytes(24_000_000)
    ),
    "v2-nan": lambda: _inputs(
        _tensor("FP32", [1, 3, 2, 2], **_sized(48)), data=b"\xff\xff\xff\xff" * 12
    ),
    "v2-json-large-number": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[' + b"9" * 4_000 + b"]}]}",
        path=V2,
    ),
    "v2-json-number-of-1e999": lambda: document(
        b'{"inputs":[{"name":"a","datatype":"FP64","shape":[1],"data":[1e999]}]}', path=V2
    ),
    "v2-datatype-long": lambda: _json_inputs(_tensor("X" * 5_000_000, [1], data=[1])),
    "v2-datatype-object": lambda: _json_inputs(
        {"name": "a", "datatype": {"a": list(range(300_000))}, "shape": [1], "data": [1]}
    ),
    "v2-datatype-list": lambda: _json_inputs(
        {"name": "a", "datatype": [], "shape": [1], "data": [1]}
    ),
    "v2-id-long": lambda: v2_images(gray(), id="i" * 10_000_000),
    "v2-id-object": lambda: v2_images(gray(), id={"a": [0] * 1000}),
    "v2-unknown-key": lambda: v2_images(gray(), **{"k" * 10_000_000: 1}),
    "v2-unknown-keys": lambda: v2_images(gray(), **{f"k{i}": 1 for i in range(500_000)}),
    "v2-input-unknown-key": lambda: _json_inputs(
        _tensor("BYTES", [1], data=["x"], **{"shap" * 2_000_000: 1})
    ),
    "v2-parameters": lambda: v2_images(gray(), parameters={f"p{i}": 1 for i in range(300_000)}),
    "v2-deep-parameters": lambda: document(
        b'{"inputs":[],"parameters":{"policy_parameters":' + _DEEP + b"}}", path=V2
    ),
    "v2-parameter-object": lambda: v2_images(gray(), parameters={"binary_data_output": {"a": 1}}),
    "v2-no-inputs": lambda: _json_inputs(),
    "v2-header-length-digits": lambda: _header_length("9" * 5_000),
    "v2-header-length-zeros": lambda: _header_length("0" * 5_000),
    "v2-header-length-minus": lambda: _header_length("-1"),
    "v2-header-length-beyond": lambda: _header_length("999999999"),
    "v2-header-length-unicode": lambda: _header_length("²"),
    "v2-header-length-short": lambda: _header_length("10"),
    "v2-header-length-empty": lambda: _header_length(""),
    "v2-header-deep": lambda: v2_binary(b"[" * 1_000_000, b""),
    "v2-base64-of-nothing": lambda: v2_json(*[b""] * 20_000),
    "v2-surrogate-data": lambda: _json_inputs(_tensor("BYTES", [1], data=["\ud800"])),
    "v2-error-per-sample": lambda: v2_images(*[b"x"] * 256),
    "v2-error-per-sample-skipped": lambda: v2_images(
        *[b"x"] * 256, parameters={"on_error": "skip"}
    ),
}
"""Requests of the Open Inference Protocol v2."""

ANSWERABLE = frozenset(
    {
        "json-data-uri",
        "v2-output-parameters",
        "v2-error-per-sample-skipped",
        "v2-input-name-control",
        "v2-input-name-good",
        "v2-input-names-of-300",
        "json-base64-newlines",
        "v2-header-length-zeros",
    }
)
"""Names of the requests to which a correct answer is as good as a refusal."""
