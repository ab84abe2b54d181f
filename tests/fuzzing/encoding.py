"""Requests as flat bytes, which a fuzzer can change anywhere and which mean something all the same.

A request is a byte with the number of its headers, the headers, then parts until the bytes end.
Names and content types are mostly one byte, the place in a list of those that the service knows; so
that a changed byte is another option rather than an unknown word.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchserve_ensemble.handlers.requests.options import OPTION_NAMES
from torchserve_ensemble.handlers.requests.raw_request import BODY, HEADER_LENGTH, Part, RawRequest

_OWN = 255
_HEADERS = ("accept", HEADER_LENGTH, "host", "content-type", "content-encoding")
_NAMES = (BODY, "file", *OPTION_NAMES)
_HEADER_NAMES = (*_HEADERS, *(name.replace("_", "-") for name in OPTION_NAMES))
_TYPES = ("", "image/png", "application/json", "application/octet-stream", "text/plain")
_MAX_HEADERS = 8


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def done(self) -> bool:
        return self._place >= len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._place : self._place + size]
        self._place += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def word(self, known: Sequence[str]) -> str:
        place = self.number(1)
        if place == _OWN:
            return self.take(self.number(1)).decode("utf-8", "replace")
        return known[place % len(known)]


def decode_request(data: bytes) -> RawRequest:
    """Any bytes as a request."""
    reader = _Reader(data)
    headers = {}
    for _ in range(reader.number(1) % (_MAX_HEADERS + 1)):
        name = reader.word(_HEADER_NAMES)
        headers[name] = reader.take(reader.number(2)).decode("latin1")
    parts = []
    while not reader.done:
        name, content_type = reader.word(_NAMES), reader.word(_TYPES)
        parts.append(Part(name, content_type, reader.take(reader.number(4))))
    return RawRequest(parts, headers)


def encode_request(request: RawRequest) -> bytes:
    """The bytes from which `decode_request` makes this request."""
    headers = list(request.headers.items())[:_MAX_HEADERS]
    data = bytearray([len(headers)])
    for name, text in headers:
        encoded = text.encode("latin1", "replace")[:65535]
        data += _word(name, _HEADER_NAMES) + len(encoded).to_bytes(2, "little") + encoded
    for part in request.parts:
        value = bytes(part.value)
        data += _word(part.name, _NAMES) + _word(part.content_type, _TYPES)
        data += len(value).to_bytes(4, "little") + value
    return bytes(data)


def _word(word: str, known: Sequence[str]) -> bytes:
    if word in known:
        return bytes([known.index(word)])
    encoded = word.encode("utf-8", "replace")[:255]
    return bytes([_OWN, len(encoded)]) + encoded
