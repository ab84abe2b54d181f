"""Takes apart tar files, plain or compressed, in the order of their entries and in memory.

The tarfile module raises many types of exceptions for damaged files, and does not document all of
them. Any exception of it is taken to mean that the file is damaged.
"""

from __future__ import annotations

import io
import tarfile
from typing import IO, Self, cast

from ...base.errors import EnsembleError
from ...base.quoting import shown
from ..budget import RequestBudget
from ..compression import SIGNATURES, Unpacked, unpacked_start
from .entries import check_not_empty, damaged_error, entry_item, is_sample
from .items import Item, Unreadable

_BYTES_PER_READ = 1 << 20

_TAR_MAGIC = b"ustar"
_TAR_MAGIC_OFFSET = 257
"""Position of `_TAR_MAGIC` in the first header of a tar file, in bytes."""

# Methods of TarInfo have a parameter that is called `tarfile` like the module.
_HeaderError, _ReadError = tarfile.HeaderError, tarfile.ReadError

_EXTENSION_HEADER_TYPES = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
"""Types of tar headers that extend the next one, with a long path for example."""

_MAX_EXTENSION_HEADER_BYTES = 2048
"""Limit on an extension header; one with a long path and times has 400 bytes.

For the digits in such a header CPython before 3.11.10 and 3.12.6 takes quadratic time: minutes for
200,000 digits.
"""

_MAX_EXTENSION_HEADER_BYTES_PER_FILE = 1 << 17
"""Limit on all extension headers of one tar file together."""


def is_tar(data: bytes) -> bool:
    """Return whether the bytes are a tar file, plain or compressed with gzip, bzip2 or xz."""
    end = _TAR_MAGIC_OFFSET + len(_TAR_MAGIC)
    if data[_TAR_MAGIC_OFFSET:end] == _TAR_MAGIC:
        return True
    if not data.startswith(SIGNATURES):
        return False
    try:
        start = unpacked_start(data, end)
    except Exception:
        # No image begins like a compressed file. Reading the tar file reports the damage.
        return True
    return start[_TAR_MAGIC_OFFSET:] == _TAR_MAGIC


def untar(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each file in a tar file, plain or compressed.

    Args:
        data: the tar file.
        name: name of the part, for messages.
        budget: budget of the request, in which entries, samples and unpacked bytes are counted.

    Raises:
        RequestError: the tar file is damaged, or holds no files that may be samples.
        TooLargeError: the tar file exceeds what the budget has left.
    """
    items: list[Item] = []
    try:
        is_compressed = data.startswith(SIGNATURES)
        stream: IO[bytes]
        if is_compressed:
            stream = cast("IO[bytes]", Unpacked(data, name, budget))
        else:
            budget.take_unpacked_bytes(len(data), name)
            stream = io.BytesIO(data)
        tar_info = _bounded_tar_info(name, budget, None if is_compressed else len(data))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=tar_info) as tar:
            for info in tar:
                if info.isdir() or not is_sample(info.name):
                    continue
                budget.take_samples(1, name)
                # The holes of a sparse file unpack to bytes that no header counts.
                is_plain = info.isreg() and not info.issparse()
                file = tar.extractfile(info) if is_plain else None
                if file is None:
                    items.append(
                        entry_item(info.name, Unreadable("it is a link, device or sparse file"))
                    )
                else:
                    items.append(entry_item(info.name, file.read()))
        # The checksum of a compressed file stands behind the last byte that tarfile reads.
        while is_compressed and stream.read(_BYTES_PER_READ):
            pass
    except EnsembleError:
        raise
    except Exception as error:
        raise damaged_error(name, "tar", error) from None
    check_not_empty(items, name, "tar")
    return items


def _bounded_tar_info(
    name: str, budget: RequestBudget, file_bytes: int | None
) -> type[tarfile.TarInfo]:
    """Make the class with which tarfile reads headers; it counts and checks each of them.

    An entry may not be longer than the file, because tarfile skips an entry by reading it, even
    beyond the end of the file.

    Args:
        name: name of the tar file, for messages.
        budget: budget of the request, in which each header counts as an entry.
        file_bytes: size of a plain tar file; None for a compressed one, whose unpacked size is
            limited by the budget.
    """
    extension_bytes = 0

    def check_size(info: tarfile.TarInfo) -> None:
        if info.size < 0 or (file_bytes is not None and info.size > file_bytes):
            raise _ReadError(f"an entry has {shown(info.size)} bytes, by its header")
        if file_bytes is None and info.size > budget.unpacked_bytes_left:
            budget.take_unpacked_bytes(info.size, name)

    class BoundedInfo(_StrictInfo):
        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
            info = super().fromtarfile(tarfile)
            check_size(info)  # An extension header may have replaced the size.
            return info

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal extension_bytes
            info = super().frombuf(buf, encoding, errors)
            budget.take_entries(1, name)
            check_size(info)
            if info.type in _EXTENSION_HEADER_TYPES:
                extension_bytes += info.size
                if (
                    info.size > _MAX_EXTENSION_HEADER_BYTES
                    or extension_bytes > _MAX_EXTENSION_HEADER_BYTES_PER_FILE
                ):
                    raise _ReadError("its entries have names or attributes that are too long")
            return info

    return BoundedInfo


class _StrictInfo(tarfile.TarInfo):
    """A header of a tar file that raises an error where tarfile would go on without samples.

    tarfile takes a damaged header for the end of the file, and would drop all samples after it.
    """

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuse a sparse file, in place of the method of TarInfo that reads one."""
        # The map of a sparse file may list millions of holes, so it is not even read.
        raise _ReadError("it holds sparse files; pack them without --sparse")

    _proc_sparse = _proc_gnusparse_10

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            HeaderError: the file has ended.
            ReadError: the header is damaged.
        """
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise _ReadError(str(error)) from None
