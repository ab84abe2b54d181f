"""Makes requests in every wire form, as a client sends them and as the worker sees them.

A `Request` contains both. Tests with a real server, tests of the service in this process and the
fuzzers' seeds can therefore use the same requests.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREDICT = "/predictions/probes"
V1 = "/v1/models/probes:predict"
V2 = "/v2/models/probes/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
_BOUNDARY = "----bombs-boundary"

WorkerPart = tuple[str, str, bytes]
"""Name, content type and bytes of one part, as TorchServe hands them to its worker."""


@dataclass(frozen=True)
class Request:
    """A request over REST, or a gRPC call.

    Attributes:
        body: body as it is sent.
        headers: headers in order; Content-Length is added when the request is sent.
        path: path of the REST route.
        parts: the parts that TorchServe makes of the body and gives to the worker.
        host: whether a Host header is sent.
        inputs: inputs of a gRPC call, which has no body, headers or path; None for REST.
    """

    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    path: str = PREDICT
    parts: tuple[WorkerPart, ...] = ()
    host: bool = True
    inputs: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class Bomb:
    """A hostile request.

    Attributes:
        name: name of the test case.
        make: makes the request; called once.
        answerable: whether a quick correct answer is as good as a refusal.
        refused_by_frontend: whether TorchServe's frontend may refuse the request in its own way,
            with a closed connection or a 500, before any worker sees it.
    """

    name: str
    make: Callable[[], Request] = field(repr=False)
    answerable: bool = False
    refused_by_frontend: bool = False


def raw(
    body: bytes,
    content_type: str = "application/octet-stream",
    *,
    path: str = PREDICT,
    host: bool = True,
    **headers: str,
) -> Request:
    """Make a request whose body is a sample, a bundle or a document.

    Args:
        body: the body.
        content_type: content type of the body; if it is empty, no such header is sent.
        path: path of the route.
        host: whether a Host header is sent.
        headers: further headers, with underscores in their names instead of hyphens.
    """
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if content_type:
        named.insert(0, ("Content-Type", content_type))
    parts = (("body", content_type, body),)
    return Request(body, tuple(named), path, parts, host)


def form(
    files: Iterable[bytes] = (), fields: Iterable[tuple[str, bytes]] = (), name: str = "file"
) -> Request:
    """Make a form of images and, after them, text fields."""
    parts: list[WorkerPart] = [(name, "image/png", content) for content in files]
    parts += [(name, "", content) for name, content in fields]
    return multipart(parts)


def multipart(parts: Iterable[WorkerPart], *, end: bool = True) -> Request:
    """Make a form of any parts; parts with a content type get a file name."""
    parts = tuple(parts)
    body = bytearray()
    for name, content_type, content in parts:
        body += f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if content_type:
            body += f'; filename="a"\r\nContent-Type: {content_type}'.encode()
        body += b"\r\n\r\n" + content + b"\r\n"
    if end:
        body += f"--{_BOUNDARY}--\r\n".encode()
    headers = (("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}"),)
    return Request(bytes(body), headers, parts=parts)


def document(content: object, *, path: str = V1, content_type: str = "application/json") -> Request:
    """Make a request whose body is JSON, or bytes that need not be valid JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return raw(body, content_type, path=path)


def instances(*images: bytes, parameters: Mapping[str, Any] | None = None) -> Request:
    """Make a request of KServe v1 with images in base64."""
    encoded = [{"b64": base64.b64encode(each).decode()} for each in images]
    return document({"instances": encoded, "parameters": dict(parameters or {})})


def v2_json(*images: bytes, **keys: Any) -> Request:
    """Make a request of Open Inference v2 with images in base64, and with further keys."""
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(each).decode() for each in images],
    }
    return document({"inputs": [tensor], **keys}, path=V2)


def v2_binary(header: object, data: bytes) -> Request:
    """Make a request of Open Inference v2 with the binary tensor extension."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    request = raw(head + data, path=V2)
    return Request(
        request.body,
        (*request.headers, (HEADER_LENGTH, str(len(head)))),
        V2,
        request.parts,
    )


def v2_images(*images: bytes, **keys: Any) -> Request:
    """Make a request of Open Inference v2 with images as binary data, and with further keys."""
    data = b"".join(struct.pack("<I", len(each)) + each for each in images)
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"binary_data_size": len(data)},
    }
    return v2_binary({"inputs": [tensor], **keys}, data)


def call(**inputs: bytes) -> Request:
    """Make a gRPC call."""
    parts = tuple((name, "", content) for name, content in inputs.items())
    return Request(inputs=inputs, parts=parts)


def tar(entries: Mapping[str, bytes]) -> bytes:
    """Make a tar file of entries."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zipped(entries: Mapping[str, bytes]) -> bytes:
    """Make a zip file of deflated entries."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target.getvalue()


def _in(archive: Callable[[Mapping[str, bytes]], bytes], images: tuple[bytes, ...]) -> bytes:
    return archive({f"{index}.png": each for index, each in enumerate(images)})


FORMS: Mapping[str, Callable[..., Request]] = {
    "body": lambda *images: raw(images[0]) if len(images) == 1 else raw(_in(tar, images)),
    "multipart": lambda *images: form(images),
    "multipart-zips": lambda *images: form(_in(zipped, (each,)) for each in images),
    "instances": instances,
    "v2-json": v2_json,
    "v2-binary": v2_images,
    "tar": lambda *images: raw(_in(tar, images)),
    "tar.gz": lambda *images: raw(gzip.compress(_in(tar, images), 1)),
    "tar.bz2": lambda *images: raw(bz2.compress(_in(tar, images), 1)),
    "tar.xz": lambda *images: raw(lzma.compress(_in(tar, images), preset=0)),
    "zip": lambda *images: raw(_in(zipped, images)),
    "grpc": lambda *images: call(file=images[0] if len(images) == 1 else _in(tar, images)),
}
"""Every wire form in which images reach the service, as a function of their files."""
