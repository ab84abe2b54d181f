"""Images in a tar or zip file, in the file's order; nothing is written to disk.

The standard library's readers raise many kinds of errors on damaged files, which are not documented
in full; whatever they raise means here that the client's file is damaged.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Self, cast

from ..errors import EnsembleError, RequestError
from .items import BundleLimits, Item, Unreadable

_CHUNK = 1 << 20
# Folders and hidden files are no samples, but reading over millions of them takes time as well.
_SKIPPED_PER_SAMPLE = 16
_XZ = b"\xfd7zXZ\x00"
_COMPRESSED = (b"\x1f\x8b", b"BZh", _XZ)
# The decoder of xz allocates what a header asks for; xz -9 asks for 64 MiB.
_MOST_FOR_XZ = 80 << 20
# zipfile unpacks the other methods without any bound on what one read gives.
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAGIC_AT = 257
_HeaderError, _ReadError = tarfile.HeaderError, tarfile.ReadError


def is_zip(data: bytes) -> bool:
    """Whether the bytes begin as a zip file, an empty one included."""
    return data.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_tar(data: bytes) -> bool:
    """Whether the bytes are a tar file, or a compressed one."""
    if data[_MAGIC_AT : _MAGIC_AT + 5] == b"ustar":
        return True
    if not data.startswith(_COMPRESSED):
        return False
    try:
        start = _decompressed(data).read(_MAGIC_AT + 5)
    except Exception:
        # No image begins like this; what is wrong shows when it is read.
        return True
    return start[_MAGIC_AT:] == b"ustar"


def unzip(data: bytes, name: str, limits: BundleLimits) -> list[Item]:
    """The files of a zip.

    Raises:
        RequestError: it is damaged or empty.
        TooLargeError: it exceeds the limits.
    """
    most = limits.max_entries * (1 + _SKIPPED_PER_SAMPLE)
    # zipfile makes an object of every directory entry at once, so they are counted before.
    if data.count(b"PK\x01\x02") > most:
        limits.check_entries(limits.max_entries + 1, name)
    budget = _Budget(limits, name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            items: list[Item] = []
            for info in archive.infolist():
                if info.is_dir() or not _is_sample(info.filename):
                    continue
                limits.check_entries(len(items) + 1, name)
                items.append(Item(info.filename, _unzip_one(archive, info, budget)))
    except EnsembleError:
        raise
    except Exception as error:
        raise _damaged(name, "zip", error) from None
    return _not_empty(items, name, "zip")


def untar(data: bytes, name: str, limits: BundleLimits) -> list[Item]:
    """The files of a tar, compressed or not.

    Raises:
        RequestError: it is damaged or empty.
        TooLargeError: it exceeds the limits.
    """
    budget = _Budget(limits, name)
    most = limits.max_entries * (1 + _SKIPPED_PER_SAMPLE)
    items: list[Item] = []
    try:
        compressed = data.startswith(_COMPRESSED)
        stream: IO[bytes] = _decompressed(data) if compressed else io.BytesIO(data)
        counted = cast("IO[bytes]", _Counted(stream, budget))
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_StrictInfo) as archive:
            for position, info in enumerate(archive):
                if position > most:
                    limits.check_entries(limits.max_entries + 1, name)
                if info.isdir() or not _is_sample(info.name):
                    continue
                limits.check_entries(len(items) + 1, name)
                # A sparse file's holes are unpacked from nothing, past every bound.
                plain = info.isreg() and not info.issparse()
                file = archive.extractfile(info) if plain else None
                if file is None:
                    items.append(Item(info.name, Unreadable("it is a link, device or sparse file")))
                else:
                    items.append(Item(info.name, file.read()))
        # The checksum of a compressed file comes last, after what tarfile reads.
        while compressed and counted.read(_CHUNK):
            pass
    except EnsembleError:
        raise
    except Exception as error:
        raise _damaged(name, "tar", error) from None
    return _not_empty(items, name, "tar")


class _StrictInfo(tarfile.TarInfo):
    """Where tarfile takes a damaged header for the end, and would drop all samples after it."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next entry; as in the base class, the end mark raises an error of its own."""
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise _ReadError(str(error)) from None


class _Budget:
    """Bytes that a bundle may still unpack to."""

    def __init__(self, limits: BundleLimits, name: str) -> None:
        self._limits = limits
        self._name = name
        self.left = limits.max_unpacked_bytes

    def take(self, size: int) -> None:
        """Raise TooLargeError once too much was unpacked."""
        self.left -= size
        if self.left < 0:
            raise self._limits.too_large(self._name)


class _Counted:
    """A stream whose bytes count, headers and padding too: small bombs hide there."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, never more than the budget allows."""
        wanted = self._budget.left + 1 if size < 0 else min(size, self._budget.left + 1)
        content = self._stream.read(wanted)
        self._budget.take(len(content))
        return content


def _unzip_one(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget
) -> bytes | Unreadable:
    if info.flag_bits & 1:
        return Unreadable("it is encrypted")
    if stat.S_ISLNK(info.external_attr >> 16):
        return Unreadable("it is a link, no file")
    if info.compress_type not in _BOUNDED_METHODS:
        return Unreadable("it is not packed with deflate, zip's usual method; pack it again")
    chunks = []
    try:
        with archive.open(info) as file:
            for chunk in _chunks(file):
                budget.take(len(chunk))
                chunks.append(chunk)
    except EnsembleError:
        raise
    except Exception as error:
        return Unreadable(f"it is damaged in its zip file: {error}")
    return b"".join(chunks)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


class _Unxz:
    """The first stream of an xz file, unpacked in bounded memory."""

    def __init__(self, data: bytes) -> None:
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_FOR_XZ)
        self._rest = data

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._decoder.eof or not size:
            return b""
        content = self._decoder.decompress(self._rest, size)
        self._rest = b""
        if not content and not self._decoder.eof:
            raise EOFError("the file ends in its middle")
        return content


def _decompressed(data: bytes) -> IO[bytes]:
    if data.startswith(_XZ):
        return cast("IO[bytes]", _Unxz(data))
    stream = io.BytesIO(data)
    if data.startswith(_COMPRESSED[0]):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    return cast("IO[bytes]", bz2.BZ2File(stream))


def _is_sample(path: str) -> bool:
    """Not what file managers and archivers leave behind."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "__MACOSX" and not parts[-1].startswith(".")


def _damaged(name: str, kind: str, error: Exception) -> RequestError:
    return RequestError(f"{name}: the {kind} file is damaged ({error}); pack it again")


def _not_empty(items: list[Item], name: str, kind: str) -> list[Item]:
    if not items:
        raise RequestError(f"{name}: the {kind} file holds no image; put image files into it")
    return items
