"""Requests as a client sends them, and as the worker sees them.

`Request` holds both, so that one attack serves a test with a real server, a test of the service in
this process, and the corpus of the fuzzers.
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
    """One request.

    Attributes:
        body: on the wire.
        headers: in order; a Content-Length is added when the request is sent.
        path: of a REST route.
        parts: what TorchServe makes of the body.
        host: whether to send a Host header.
        inputs: of a gRPC call, which has no body, headers or path.
    """

    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    path: str = PREDICT
    parts: tuple[WorkerPart, ...] = ()
    host: bool = True
    inputs: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class Bomb:
    """An attack.

    Attributes:
        name: for the test's id.
        make: builds the request; called once.
        answerable: whether a quick correct answer is as good as a refusal.
        refused_by_frontend: whether TorchServe's Java may refuse it in its own way: with a closed
            connection or a 500 of its own, before any worker sees it.
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
    """A request whose body is the one sample, bundle or document; header names with underscores."""
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if content_type:
        named.insert(0, ("Content-Type", content_type))
    parts = (("body", content_type, body),)
    return Request(body, tuple(named), path, parts, host)


def form(
    files: Iterable[bytes] = (), fields: Iterable[tuple[str, bytes]] = (), name: str = "file"
) -> Request:
    """A multipart form of image parts and of text fields, in this order."""
    parts: list[WorkerPart] = [(name, "image/png", content) for content in files]
    parts += [(name, "", content) for name, content in fields]
    return multipart(parts)


def multipart(parts: Iterable[WorkerPart], *, end: bool = True) -> Request:
    """A multipart form of any parts; those with a content type get a file name."""
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
    """A JSON body: of an object, or of bytes that need not be valid."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return raw(body, content_type, path=path)


def instances(*images: bytes, parameters: Mapping[str, Any] | None = None) -> Request:
    """KServe v1 with images in base64."""
    encoded = [{"b64": base64.b64encode(each).decode()} for each in images]
    return document({"instances": encoded, "parameters": dict(parameters or {})})


def v2_json(*images: bytes, **keys: Any) -> Request:
    """Open Inference v2 with one BYTES input, in base64; further keys of the request."""
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(each).decode() for each in images],
    }
    return document({"inputs": [tensor], **keys}, path=V2)


def v2_binary(header: object, data: bytes) -> Request:
    """Open Inference v2 with the binary tensor extension."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    request = raw(head + data, path=V2)
    return Request(
        request.body,
        (*request.headers, (HEADER_LENGTH, str(len(head)))),
        V2,
        request.parts,
    )


def v2_images(*images: bytes, **keys: Any) -> Request:
    """Open Inference v2 with one BYTES input as binary data; further keys of the request."""
    data = b"".join(struct.pack("<I", len(each)) + each for each in images)
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"binary_data_size": len(data)},
    }
    return v2_binary({"inputs": [tensor], **keys}, data)


def call(**inputs: bytes) -> Request:
    """A gRPC call."""
    parts = tuple((name, "", content) for name, content in inputs.items())
    return Request(inputs=inputs, parts=parts)


def tar(entries: Mapping[str, bytes]) -> bytes:
    """A tar file of the given entries."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zipped(entries: Mapping[str, bytes]) -> bytes:
    """A zip file of the given entries, deflated."""
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
"""Every way in which images reach the service: a function of one or several encoded images."""
