"""The load generator: what it declares images as, how it names errors, and when it ends."""

from __future__ import annotations

import io
import socket
import time

import pytest
from PIL import Image

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving import load
from torchserve_ensemble.serving.load import LoadClient, LoadTarget, encode, media_type, open_loop


def encoded(image_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, image_format)
    return file.getvalue()


TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
}


@pytest.mark.parametrize("image_format", TYPES)
def test_the_type_of_an_image(image_format: str) -> None:
    assert media_type(encoded(image_format)) == TYPES[image_format]


def test_other_bytes_have_no_type_of_an_image() -> None:
    assert media_type(b"no image") == "application/octet-stream"


def test_each_image_is_declared_as_what_it_is() -> None:
    images = [encoded("PNG"), encoded("JPEG")]
    target = LoadTarget("http://127.0.0.1:1", ("/predictions/a",))
    (form,) = encode(target, images)
    assert form.body.count(b"Content-Type: image/png\r\n") == 1
    assert form.body.count(b"Content-Type: image/jpeg\r\n") == 1
    raw = encode(LoadTarget(target.address, target.paths, "raw"), images)
    assert [each.headers["Content-Type"] for each in raw] == ["image/png", "image/jpeg"]
    (declared,) = encode(LoadTarget(target.address, target.paths, "raw", {}, "image/x"), images[:1])
    assert declared.headers["Content-Type"] == "image/x"


def test_errors_are_named_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = LoadTarget(f"http://127.0.0.1:{silent.getsockname()[1]}", ("/predictions/a",))
        with pytest.raises(ServerError, match="no answer within 0.6 s"):
            LoadClient(target).ask(encode(target, [b"x"]), timeout=0.6)
    with pytest.raises(ServerError, match="no answer: .*refused"):
        LoadClient(target).ask(encode(target, [b"x"]))


def test_an_open_loop_ends_though_the_server_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(load, "_MAX_OPEN_LOOP_CONNECTIONS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = LoadTarget(f"http://127.0.0.1:{silent.getsockname()[1]}", ("/predictions/a",))
        begin = time.monotonic()
        measured = open_loop(target, [b"x"], rate=100, arrivals="fixed", size=1, seconds=0.2)
        took = time.monotonic() - begin
    # One after the other, 20 requests on 2 connections would take 5 s.
    assert took < 2
    assert measured.images == 0
    assert measured.errors == {"no answer within 0.5 s of the scheduled moment": 20}
