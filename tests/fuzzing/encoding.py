"""Encodes requests as bytes that are a request again however a fuzzer changes them.

The encoding begins with a byte for the number of headers. The headers follow, and then parts until
the bytes end. A name or a content type is a single byte, its position in a list of words that the
service knows. A changed byte therefore gives another option rather than an unknown word. Words that
are not in the list are spelt out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchserve_ensemble.handlers.requests.options import OPTION_NAMES
from torchserve_ensemble.handlers.requests.raw_request import BODY, HEADER_LENGTH, Part, RawRequest

_SPELT_OUT = 255
"""Instead of a position: the length of a word and the word itself follow."""

_HEADERS = ("accept", HEADER_LENGTH, "host", "content-type", "content-encoding")
_NAMES = (BODY, "file", *OPTION_NAMES)
_HEADER_NAMES = (*_HEADERS, *(name.replace("_", "-") for name in OPTION_NAMES))
_TYPES = ("", "image/png", "application/json", "application/octet-stream", "text/plain")
_MAX_HEADERS = 8


class _Reader:
    """Reads values from bytes; after the end of the bytes it reads zeros and empty words."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position >= len(self._data)

    def read(self, size: int) -> bytes:
        start = self._position
        self._position += size
        return self._data[start : self._position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def word(self, words: Sequence[str]) -> str:
        position = self.number(1)
        if position == _SPELT_OUT:
            return self.read(self.number(1)).decode("utf-8", "replace")
        return words[position % len(words)]


def decode_request(data: bytes) -> RawRequest:
    """Make a request of any bytes."""
    reader = _Reader(data)
    headers = {}
    for _ in range(reader.number(1) % (_MAX_HEADERS + 1)):
        name = reader.word(_HEADER_NAMES)
        headers[name] = reader.read(reader.number(2)).decode("latin1")
    parts = []
    while not reader.at_end:
        name, content_type = reader.word(_NAMES), reader.word(_TYPES)
        parts.append(Part(name, content_type, reader.read(reader.number(4))))
    return RawRequest(parts, headers)


def encode_request(request: RawRequest) -> bytes:
    """Make the bytes from which `decode_request` makes this request."""
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


def _word(word: str, words: Sequence[str]) -> bytes:
    if word in words:
        return bytes([words.index(word)])
    encoded = word.encode("utf-8", "replace")[:255]
    return bytes([_SPELT_OUT, len(encoded)]) + encoded
