"""The limits of a request hold for all of its parts together, and before the work is done."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import crc, encoded
from PIL import Image
from probe_ensemble import form, image, probes, read

from torchserve_ensemble.handlers.answers.encoding import Response
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService

BRIGHT = image(0.9)
MAX_ANSWER_BYTES = 12_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> EnsembleService:
    return probes(tmp_path_factory.mktemp("probes"), task="presence")


def raw(data: bytes, content_type: str = "", **headers: str) -> RawRequest:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawRequest([Part("body", content_type, bytearray(data))], names)


def files(data: bytes, count: int) -> RawRequest:
    return RawRequest([Part("file", "image/png", bytearray(data))] * count)


def document(content: object) -> RawRequest:
    return raw(json.dumps(content).encode(), "application/json")


def large_png(width: int, height: int, depth: int = 1) -> bytes:
    """A black gray-scale PNG file; it has some hundred bytes, whatever its size in pixels."""
    row = bytes(1 + (width * depth + 7) // 8)
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def tar(name: str, content: bytes, **attributes: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = len(content), attributes
        archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zipped(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", content)
    return target.getvalue()


def npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def answered(service: EnsembleService, request: RawRequest) -> Response:
    """Answer a request in a batch between two good ones, which must be answered as well."""
    before, response, after = service.answer([form(BRIGHT), request, form(BRIGHT)])
    assert [read(each)["predictions"][0]["label"] for each in (before, after)] == ["bright"] * 2
    assert len(response.body) < MAX_ANSWER_BYTES
    return response


def check_refused_soon(
    service: EnsembleService, make: Callable[[], RawRequest], message: str, *, status: int
) -> None:
    """Check that a request is refused within two seconds of processor time, and why."""
    request = make()
    began = time.process_time()
    response = answered(service, request)
    assert time.process_time() - began < 2
    assert response.status == status
    assert message in read(response)["message"]


def _with_exif(content: bytes, segments: int = 1) -> bytes:
    """A JPEG file with segments of EXIF metadata, all of which Pillow joins."""
    whole = encoded(Image.new("RGB", (8, 8)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content
    return whole[:2] + segment * segments + whole[2:]


LARGE = large_png(6000, 6000)
TAGS = struct.pack("<2sHIH", b"II", 42, 8, 900) + struct.pack("<HHII", 33000, 3, 1, 1) * 900
TOO_LARGE: dict[str, tuple[Callable[[], RawRequest], str]] = {
    "pixels of many images": (lambda: files(LARGE, 256), "limits.max_request_pixels"),
    "a side": (lambda: raw(large_png(70_000, 1)), "a side may have 65535"),
    "a side of a tensor": (
        lambda: raw(npy(np.zeros((1, 1, 33_000_000), np.uint8))),
        "a side may have 65535",
    ),
    "many zip files": (lambda: files(zipped(bytes(4_000_000)), 40), "limits.max_unpacked_bytes"),
    "a hidden entry": (
        lambda: raw(bz2.compress(tar(".hidden", bytes(200_000_000)), 1)),
        "limits.max_unpacked_bytes",
    ),
    "a body in gzip": (
        lambda: raw(gzip.compress(bytes(200_000_000), 1), content_encoding="gzip"),
        "limits.max_unpacked_bytes",
    ),
    "JSON values": (
        lambda: raw(b'{"instances":[' + b"[]," * 1_600_000 + b"1]}", "application/json"),
        "limits.max_json_values",
    ),
    "parts": (lambda: files(b"x", 1000), "parts"),
    "instances": (lambda: document({"instances": ["aa=="] * 257}), "limits.max_samples"),
    "texts of a v2 input": (
        lambda: document({"inputs": [{"name": "x", "shape": [10**6], "datatype": "BYTES"}]}),
        "limits.max_samples",
    ),
    "v2 inputs": (lambda: document({"inputs": [{}] * 1000}), '"inputs" has 1000 entries'),
    "tags of many images": (
        lambda: files(_with_exif(TAGS + bytes(4)), 256),
        "limits.max_request_pixels",
    ),
    "scans of a JPEG": (
        lambda: raw(encoded(Image.new("RGB", (900, 900)), "JPEG") + b"\xff\xda" * 2000),
        "limits.max_request_pixels",
    ),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_too_much_is_refused_before_it_is_done(service: EnsembleService, kind: str) -> None:
    check_refused_soon(service, *TOO_LARGE[kind], status=413)


BAD: dict[str, tuple[Callable[[], RawRequest], str]] = {
    "digits in a tar's header": (
        lambda: raw(tar("a.png", b"", comment="9" * 200_000)),
        "names or attributes that are too long",
    ),
    "empty gzip members": (
        lambda: raw(gzip.compress(b"") * 400_000),
        "more than 10000 compressed files",
    ),
    "a long name of an input": (
        lambda: document({"inputs": [{"name": "x" * 10**6, "shape": [1], "datatype": "BYTES"}]}),
        '"name" must be',
    ),
    "a long name of an option": (
        lambda: document({"instances": [], "parameters": {"o" * 10**7: 1}}),
        "unknown option",
    ),
    "many unknown options": (
        lambda: document({"instances": [], "parameters": {f"o{i}": 1 for i in range(10**5)}}),
        "and 99997 more",
    ),
    "a long list of fields": (lambda: form(BRIGHT, fields="label," * 10**6), "characters"),
    "deep JSON in an option": (
        lambda: form(BRIGHT, policy_parameters="[" * 900 + "]" * 900),
        "nested deeper",
    ),
    "a lone surrogate in an option's name": (
        lambda: raw(b'{"instances":["aa=="],"parameters":{"\\ud800":1}}', "application/json"),
        "unknown option",
    ),
    "a weight that float32 has not": (lambda: form(BRIGHT, weights='{"a": 1e39}'), "weights"),
    "an integer that float has not": (
        lambda: form(BRIGHT, policy=f"mean >= {'9' * 400}"),
        "between 0 and 1",
    ),
    "a header of many digits": (
        lambda: raw(b"{}", inference_header_content_length="9" * 5000),
        "must be a number of bytes",
    ),
    "PNG chunks without number": (
        lambda: raw(LARGE[:33] + (bytes(4) + b"tEXt" + struct.pack(">I", crc(b"tEXt"))) * 300_000),
        "too many pieces",
    ),
    "EXIF segments without number": (
        lambda: raw(_with_exif(b"\xff" * 20_000, segments=2000)),
        "segments of EXIF",
    ),
    "JPEG 2000 tiles without number": (
        lambda: raw(encoded(Image.new("RGB", (800, 800)), "JPEG2000", tile_size=(4, 4))),
        "tiles",
    ),
    "tensors without number": (
        lambda: raw(struct.pack("<Q", 10**6) + b"{" + bytes(10**6)),
        "header of the safetensors file",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_the_clients_mistakes_are_named_at_once(service: EnsembleService, kind: str) -> None:
    check_refused_soon(service, *BAD[kind], status=400)


def test_codings_that_are_not_understood_are_named(service: EnsembleService) -> None:
    response = answered(service, raw(b"x", content_encoding="br"))
    assert response.status == 415
    assert "gzip" in read(response)["message"]


def test_a_body_in_gzip_is_unpacked(service: EnsembleService) -> None:
    body = json.dumps({"instances": [{"b64": _base64(BRIGHT)}]}).encode()
    response = answered(
        service, raw(gzip.compress(body), "application/json", content_encoding="gzip")
    )
    assert read(response)["predictions"][0]["label"] == "bright"


def test_a_data_uri_is_an_image(service: EnsembleService) -> None:
    uri = f"data:image/png;base64,{_base64(BRIGHT)}"
    response = answered(service, document({"instances": [uri]}))
    assert read(response)["predictions"][0]["label"] == "bright"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_very_long_image_is_answered(service: EnsembleService) -> None:
    assert answered(service, raw(large_png(65_000, 1))).status == 200


def test_a_refusal_lists_the_first_failed_samples(service: EnsembleService) -> None:
    refusal = read(answered(service, files(b"no image", 200)))
    assert len(refusal["samples"]) + refusal["more_samples"] == 200


def test_an_answer_that_would_be_too_long_is_not_made(tmp_path: Path) -> None:
    service = probes(tmp_path, limits={"max_response_bytes": 2000})
    (response,) = service.answer([files(BRIGHT, 100)])
    assert response.status == 413
    assert "limits.max_response_bytes" in read(response)["message"]
    assert service.answer([form(BRIGHT)])[0].status == 200


def test_one_bad_name_in_an_archive_fails_alone(service: EnsembleService) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("x" * 5000, BRIGHT)
        archive.writestr("b.png", BRIGHT)
    parts = [Part("file", "application/zip", target.getvalue()), Part("on_error", "", b"skip")]
    first, second = read(answered(service, RawRequest(parts)))["predictions"]
    assert "at most 256 characters" in first["error"]["message"]
    assert second["label"] == "bright"


def test_a_batch_that_takes_too_long_refuses_what_is_left(service: EnsembleService) -> None:
    long_ago = time.monotonic() - 1000
    (response,) = service.answer([form(BRIGHT)], arrived=long_ago)
    assert response.status == 503
    assert "send this one again" in read(response)["message"]


def test_archives_of_one_batch_share_the_workers_memory(service: EnsembleService) -> None:
    request = raw(zipped(bytes(100_000_000)))
    statuses = [response.status for response in service.answer([request] * 4 + [form(BRIGHT)])]
    assert statuses == [400, 503, 503, 503, 200]


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_decoders_of_images_that_wait_take_no_memory(service: EnsembleService, kind: str) -> None:
    """Pillow's objects for these formats hold all pixels from the moment that a file is opened."""
    picture = encoded(Image.new("RGB", (1500, 1500), (9, 99, 9)), kind)
    answered(service, files(picture, 1))
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_memory()
    assert answered(service, files(picture, 20)).status == 200
    assert _peak_memory() - before < 150 * 1024**2


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_bytes_of_slow_packers_count_several_times(service: EnsembleService) -> None:
    packed = bz2.compress(tar("a.png", bytes(40_000_000)), 1)
    response = answered(service, raw(packed))
    assert response.status == 413
    assert "limits.max_unpacked_bytes" in read(response)["message"]
