"""Unpacks gzip, bzip2 and xz, and counts the unpacked bytes in the budget of the request."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Protocol

from .budget import RequestBudget

GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
SIGNATURES = (GZIP, BZIP2, XZ)
"""The bytes with which a gzip, bzip2 or xz file begins."""

_BUDGET_BYTES_PER_BYTE = {GZIP: 1, BZIP2: 4, XZ: 2}
"""Number of bytes for which one unpacked byte counts in the budget.

bzip2 unpacks 20 MB a second, gzip 200 MB.
"""

_MAX_INPUT_BYTES_PER_CALL = 1 << 16
_MAX_OUTPUT_BYTES_PER_CALL = 1 << 20

_MAX_STREAMS = 10_000
"""Limit on the compressed streams that follow each other in one file.

Parallel packers write such files; bgzip makes a stream for every 64 KB. Each stream takes some
microseconds to unpack, even an empty one.
"""

_MAX_XZ_MEMORY_BYTES = 80 << 20
"""The decoder of xz allocates what a file's header asks for; files of ``xz -9`` ask for 64 MiB."""

_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS
"""16 tells zlib to expect gzip's header and checksum."""


class _Decoder(Protocol):
    """The interface that the decoders of bz2 and lzma share.

    `eof` is true at the end of a stream. `needs_input` is true if the decoder has no input left.
    `unused_data` is the input behind the end of the stream. `decompress` returns at most
    `max_length` bytes.
    """

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's decoder with the interface of `_Decoder`."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)

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
    """Reads the content of a compressed file and counts each byte in the budget when it is read."""

    def __init__(self, data: bytes, name: str, budget: RequestBudget) -> None:
        """Prepare to unpack; nothing is read yet.

        Args:
            data: the compressed file, which begins with one of `SIGNATURES`.
            name: name of the file, for messages.
            budget: budget of the request.
        """
        self._name = name
        self._budget = budget
        self._streams = _CompressedStreams(data)
        self._budget_bytes_per_byte = next(
            cost for start, cost in _BUDGET_BYTES_PER_BYTE.items() if data.startswith(start)
        )

    def read(self, size: int) -> bytes:
        """Read the next bytes: `size` of them, or fewer at the end of the file.

        Raises:
            TooLargeError: the budget is used up.
            EOFError, OSError, zlib.error, lzma.LZMAError: the file is damaged.
        """
        # One byte more than the budget has left is read, so that the budget notices the excess.
        left = max(self._budget.unpacked_bytes_left, 0) // self._budget_bytes_per_byte
        content = self._streams.read(min(size, left + 1))
        self._budget.take_unpacked_bytes(len(content) * self._budget_bytes_per_byte, self._name)
        return content


def unpacked_start(data: bytes, size: int) -> bytes:
    """Unpack the first `size` bytes of a compressed file, without counting them in a budget."""
    return _CompressedStreams(data).read(size)


class _CompressedStreams:
    """Unpacks the compressed streams of one file, which follow each other."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._signature = next(each for each in SIGNATURES if data.startswith(each))
        self._decoder = self._new_decoder()
        self._count = 1

    def read(self, size: int) -> bytes:
        """Read the next bytes of the content: `size` of them, or fewer at the end of the file."""
        outputs: list[bytes] = []
        while size > 0:
            if self._decoder.eof and not self._begin_next_stream():
                break
            output = self._decoder.decompress(
                self._next_input(), min(size, _MAX_OUTPUT_BYTES_PER_CALL)
            )
            size -= len(output)
            outputs.append(output)
        return b"".join(outputs)

    def _next_input(self) -> bytes:
        """Return the next compressed bytes for the decoder; empty if it has some left to decode.

        Raises:
            EOFError: the file has ended before the stream has.
        """
        if not self._decoder.needs_input:
            return b""
        start, self._position = self._position, self._position + _MAX_INPUT_BYTES_PER_CALL
        compressed = bytes(self._data[start : self._position])
        if not compressed:
            raise EOFError("the file ends in its middle")
        return compressed

    def _begin_next_stream(self) -> bool:
        """Go to the stream after the one that has ended; False if only padding (zeros) is left.

        Raises:
            OSError: the file has too many streams.
        """
        # The decoder got more bytes than its stream has; the others belong to the next stream.
        self._position = min(self._position, len(self._data)) - len(self._decoder.unused_data)
        while True:
            following = bytes(
                self._data[self._position : self._position + _MAX_INPUT_BYTES_PER_CALL]
            )
            without_padding = following.lstrip(b"\0")
            self._position += len(following) - len(without_padding)
            if not following:
                return False
            if without_padding:
                break
        self._count += 1
        if self._count > _MAX_STREAMS:
            raise OSError(f"it consists of more than {_MAX_STREAMS} compressed files")
        self._decoder = self._new_decoder()
        return True

    def _new_decoder(self) -> _Decoder:
        """Make the decoder of the next stream, which has the format of the first one."""
        if self._signature == GZIP:
            return _Gzip()
        if self._signature == BZIP2:
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_MEMORY_BYTES)
