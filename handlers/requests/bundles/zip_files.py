"""Takes apart zip files, in the order of their entries and without writing to disk.

The zipfile module raises many types of exceptions for damaged files, and does not document all of
them. Any exception of it is taken to mean that the file is damaged.
"""

from __future__ import annotations

import io
import stat
import zipfile

from ...base.errors import EnsembleError, reason
from ..budget import RequestBudget
from .entries import check_not_empty, damaged_error, entry_item, is_sample
from .items import Item, Unreadable

_BYTES_PER_READ = 1 << 20

_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods for which zipfile unpacks no more bytes in one read than it returns."""

_MAX_ZIP_DIRECTORY_BYTES = 1 << 21
"""Limit on the directory of a zip file, in which an entry has 46 bytes and its path."""


def is_zip(data: bytes) -> bool:
    """Return whether the bytes begin as those of a zip file, with or without entries, do."""
    return data.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def unzip(data: bytes, name: str, budget: RequestBudget) -> list[Item]:
    """Make a sample of each file in a zip file.

    Args:
        data: the zip file.
        name: name of the part, for messages.
        budget: budget of the request, in which entries, samples and unpacked bytes are counted.

    Raises:
        RequestError: the zip file is damaged, or holds no files that may be samples.
        TooLargeError: the zip file exceeds what the budget has left.
    """
    # zipfile makes objects for all entries of the directory at once. So the entries are counted
    # before, by the bytes with which each of them begins.
    budget.take_entries(data.count(b"PK\x01\x02"), name)
    try:
        with zipfile.ZipFile(_BoundedZipFile(data)) as archive:
            items: list[Item] = []
            for info in archive.infolist():
                if info.is_dir() or not is_sample(info.filename):
                    continue
                budget.take_samples(1, name)
                items.append(entry_item(info.filename, _unzip_one(archive, info, name, budget)))
    except EnsembleError:
        raise
    except Exception as error:
        raise damaged_error(name, "zip", error) from None
    check_not_empty(items, name, "zip")
    return items


class _BoundedZipFile(io.BytesIO):
    """The bytes of a zip file; reading a directory that is too large from them is an error.

    zipfile reads the whole directory at once, from where the file says that it is, and takes
    quadratic time for the extra fields of its entries.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read the next bytes, as BytesIO does.

        Raises:
            BadZipFile: more bytes are asked for at once than a directory may have.
        """
        if size is not None and size > _MAX_ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return super().read(size)


def _unzip_one(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: RequestBudget
) -> bytes | Unreadable:
    """Unpack one entry of a zip file; an entry that cannot be unpacked does not fail the others."""
    if info.flag_bits & 1:
        return Unreadable("it is encrypted")
    if stat.S_ISLNK(info.external_attr >> 16):
        return Unreadable("it is a link, not a file")
    if info.compress_type not in _BOUNDED_METHODS:
        return Unreadable("it is not packed with deflate, zip's usual method; pack it again")
    if info.file_size > budget.unpacked_bytes_left:
        budget.take_unpacked_bytes(info.file_size, name)
    content = io.BytesIO()
    try:
        with archive.open(info) as file:
            while unpacked := file.read(_BYTES_PER_READ):
                budget.take_unpacked_bytes(len(unpacked), name)
                content.write(unpacked)
    except EnsembleError:
        raise
    except Exception as error:
        return Unreadable(f"it is damaged in its zip file: {reason(error)}")
    return content.getvalue()
