"""gzip, bzip2 and xz, unpacked within the budget of a request."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Protocol

from .budget import RequestBudget

GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
SIGNATURES = (GZIP, BZIP2, XZ)

_COST_OF_BYTE = {GZIP: 1, BZIP2: 4, XZ: 2}
"""How often an unpacked byte counts in the budget: bzip2 unpacks 20 MB a second, gzip 200."""

_INPUT_CHUNK = 1 << 16
_OUTPUT_CHUNK = 1 << 20

_MAX_MEMBERS = 10_000
"""gzip and bzip2 files may be several, one after the other, as parallel packers write them (bgzip:
one for 64 KB). Each costs some microseconds, also where it is empty."""

_MAX_XZ_MEMORY = 80 << 20
"""The decoder of xz allocates what a header asks for; xz -9 asks for 64 MiB."""

_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Decoder(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's decoder in the form of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP_WINDOW)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(max_length, 0))


class Unpacked:
    """A compressed file as a stream of its contents, whose bytes count in the budget as they come.

    Raises:
        TooLargeError: from `read`, once the budget is used up.
        EOFError, OSError, zlib.error, lzma.LZMAError: from `read`, where the file is damaged.
    """

    def __init__(self, data: bytes, name: str, budget: RequestBudget) -> None:
        """Begin to unpack.

        Args:
            data: the file, which begins with one of `SIGNATURES`.
            name: for the message.
            budget: of the request.
        """
        self._name = name
        self._budget = budget
        self._members = _Members(data)
        self._cost = next(cost for start, cost in _COST_OF_BYTE.items() if data.startswith(start))

    def read(self, size: int) -> bytes:
        """At most so many bytes; fewer only at the end."""
        # One byte more than there may be, so that the budget notices.
        wanted = min(size, max(self._budget.unpacked_bytes_left, 0) // self._cost + 1)
        content = self._members.read(wanted)
        self._budget.take_unpacked_bytes(len(content) * self._cost, self._name)
        return content


def unpacked_start(data: bytes, size: int) -> bytes:
    """The first bytes that a compressed file unpacks to."""
    return _Members(data).read(size)


class _Members:
    """Reads one member of a compressed file after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._signature = next(s for s in SIGNATURES if data.startswith(s))
        self._decoder = self._new_decoder()
        self._count = 1

    def read(self, size: int) -> bytes:
        chunks: list[bytes] = []
        while size > 0:
            if self._decoder.eof and not self._next_member():
                break
            chunk = self._decoder.decompress(self._input(), min(size, _OUTPUT_CHUNK))
            size -= len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)

    def _input(self) -> bytes:
        if not self._decoder.needs_input:
            return b""
        start, self._position = self._position, self._position + _INPUT_CHUNK
        chunk = bytes(self._data[start : self._position])
        if not chunk:
            raise EOFError("the file ends in its middle")
        return chunk

    def _next_member(self) -> bool:
        """Begin with what follows a member; False if nothing but padding does."""
        # The input was read in chunks; what is left of the last one belongs to the next member.
        self._position = min(self._position, len(self._data)) - len(self._decoder.unused_data)
        while True:
            chunk = bytes(self._data[self._position : self._position + _INPUT_CHUNK])
            rest = chunk.lstrip(b"\0")
            self._position += len(chunk) - len(rest)
            if not chunk:
                return False
            if rest:
                break
        self._count += 1
        if self._count > _MAX_MEMBERS:
            raise OSError(f"it consists of more than {_MAX_MEMBERS} compressed files")
        self._decoder = self._new_decoder()
        return True

    def _new_decoder(self) -> _Decoder:
        if self._signature == GZIP:
            return _Gzip()
        if self._signature == BZIP2:
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_MEMORY)
