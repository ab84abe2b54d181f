"""Images in a tar or zip file, in the file's order; nothing is written to disk.

The standard library's readers raise many kinds of errors on damaged files, which are not documented
in full; whatever they raise means here that the client's file is damaged.
"""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Self, cast

from ...base.errors import EnsembleError, RequestError, reason
from ...base.quoting import shown
from ..budget import RequestBudget
from ..compression import SIGNATURES, Unpacked, unpacked_start
from .items import Item, Unreadable

_CHUNK = 1 << 20
# zipfile unpacks the other methods without any bound on what one read gives.
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAGIC_AT = 257
_HeaderError, _ReadError = tarfile.HeaderError, tarfile.ReadError

_LONG_HEADERS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_MAX_ZIP_DIRECTORY_BYTES = 1 << 21
"""Bytes of a zip's directory; an entry takes 46 and its name."""

_MAX_LONG_HEADER_BYTES = 2048
"""Bytes of a tar header that continues another one; a long name and its times take 400.

CPython before 3.11.10 and 3.12.6 takes quadratic time for the digits in it: minutes for 200,000.
"""

_MAX_LONG_HEADERS_BYTES = 1 << 17
"""Bytes of all such headers of one tar file."""


def is_zip(data: bytes) -> bool:
    """Whether the bytes begin as a zip file, an empty one included."""
    return data.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_tar(data: bytes) -> bool:
    """Whether the bytes are a tar file, or a compressed one."""
    if data[_MAGIC_AT : _MAGIC_AT + 5] == b"ustar":
        return True
    if not data.startswith(SIGNATURES):
        return False
    try:
        start = unpacked_start(data, _MAGIC_AT + 5)
    except Exception:
        # No image begins like this; what is wrong shows when it is read.
        return True
    return start[_MAGIC_AT:] == b"ustar"


def unzip(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """The files of a zip.

    Raises:
        RequestError: it is damaged or empty.
        TooLargeError: it exceeds what is left of the budget.
    """
    # zipfile makes an object of every directory entry at once, so they are counted before.
    budget.take_entries(data.count(b"PK\x01\x02"), name)
    try:
        with zipfile.ZipFile(_BoundedFile(data)) as archive:
            items: list[Item] = []
            for info in archive.infolist():
                if info.is_dir() or not _is_sample(info.filename):
                    continue
                budget.take_samples(1, name)
                items.append(Item(info.filename, _unzip_one(archive, info, name, budget)))
    except EnsembleError:
        raise
    except Exception as error:
        raise _damaged(name, "zip", error) from None
    return _not_empty(items, name, "zip")


def untar(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """The files of a tar, compressed or not.

    Raises:
        RequestError: it is damaged or empty.
        TooLargeError: it exceeds what is left of the budget.
    """
    items: list[Item] = []
    try:
        compressed = data.startswith(SIGNATURES)
        size = None if compressed else len(data)
        if not compressed:
            budget.take_unpacked_bytes(len(data), name)
        stream: IO[bytes] = (
            cast("IO[bytes]", Unpacked(data, name, budget)) if compressed else io.BytesIO(data)
        )
        with tarfile.open(
            fileobj=stream, mode="r|", tarinfo=_header_reader(name, budget, size)
        ) as tar:
            for info in tar:
                if info.isdir() or not _is_sample(info.name):
                    continue
                budget.take_samples(1, name)
                # A sparse file's holes are unpacked from nothing, past every bound.
                plain = info.isreg() and not info.issparse()
                file = tar.extractfile(info) if plain else None
                if file is None:
                    items.append(Item(info.name, Unreadable("it is a link, device or sparse file")))
                else:
                    items.append(Item(info.name, file.read()))
        # The checksum of a compressed file comes last, after what tarfile reads.
        while compressed and stream.read(_CHUNK):
            pass
    except EnsembleError:
        raise
    except Exception as error:
        raise _damaged(name, "tar", error) from None
    return _not_empty(items, name, "tar")


class _BoundedFile(io.BytesIO):
    """A zip file whose directory is not too large, wherever in the file it claims to be.

    zipfile reads the whole directory at once, and its extra fields in quadratic time.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return super().read(size)


def _header_reader(
    name: str, budget: RequestBudget, file_bytes: int | None
) -> type[tarfile.TarInfo]:
    """What tarfile reads headers with: each counts, and none may ask for more than there is.

    tarfile passes over an entry by reading, also beyond the end of the file.

    Args:
        name: of the tar file, for messages.
        budget: of the request.
        file_bytes: of a file that is not compressed; None where the budget bounds it.
    """
    long_headers_bytes = 0

    def check_size(info: tarfile.TarInfo) -> None:
        if info.size < 0 or (file_bytes is not None and info.size > file_bytes):
            raise _ReadError(f"an entry has {shown(info.size)} bytes, by its header")
        if file_bytes is None and info.size > budget.unpacked_bytes_left:
            budget.take_unpacked_bytes(info.size, name)

    class BoundedInfo(_StrictInfo):
        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
            info = super().fromtarfile(tarfile)
            check_size(info)  # Which an extended header may have changed.
            return info

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal long_headers_bytes
            info = super().frombuf(buf, encoding, errors)
            budget.take_entries(1, name)
            check_size(info)
            if info.type in _LONG_HEADERS:
                long_headers_bytes += info.size
                if (
                    info.size > _MAX_LONG_HEADER_BYTES
                    or long_headers_bytes > _MAX_LONG_HEADERS_BYTES
                ):
                    raise _ReadError("its entries have names or attributes that are too long")
            return info

    return BoundedInfo


class _StrictInfo(tarfile.TarInfo):
    """Where tarfile takes a damaged header for the end, and would drop all samples after it.

    Maps of sparse files are not read: they may list millions of holes.
    """

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise _ReadError("it holds sparse files; pack them without --sparse")

    _proc_sparse = _proc_gnusparse_10

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next entry; as in the base class, the end mark raises an error of its own."""
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise _ReadError(str(error)) from None


def _unzip_one(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: RequestBudget
) -> bytes | Unreadable:
    if info.flag_bits & 1:
        return Unreadable("it is encrypted")
    if stat.S_ISLNK(info.external_attr >> 16):
        return Unreadable("it is a link, no file")
    if info.compress_type not in _BOUNDED_METHODS:
        return Unreadable("it is not packed with deflate, zip's usual method; pack it again")
    if info.file_size > budget.unpacked_bytes_left:
        budget.take_unpacked_bytes(info.file_size, name)
    content = io.BytesIO()
    try:
        with archive.open(info) as file:
            for chunk in _chunks(file):
                budget.take_unpacked_bytes(len(chunk), name)
                content.write(chunk)
    except EnsembleError:
        raise
    except Exception as error:
        return Unreadable(f"it is damaged in its zip file: {reason(error)}")
    return content.getvalue()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _is_sample(path: str) -> bool:
    """Not what file managers and archivers leave behind."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "__MACOSX" and not parts[-1].startswith(".")


def _damaged(name: str, kind: str, error: Exception) -> RequestError:
    return RequestError(f"{name}: the {kind} file is damaged ({reason(error)}); pack it again")


def _not_empty(items: list[Item], name: str, kind: str) -> list[Item]:
    if not items:
        raise RequestError(f"{name}: the {kind} file holds no image; put image files into it")
    return items
