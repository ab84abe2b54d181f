"""A model archive as the one file that it is: checked before TorchServe extracts it.

What TorchServe extracts comes first on the path of the worker's Python, whose start alone runs a
`sitecustomize.py` from there. So an altered archive must not reach TorchServe at all.

TorchServe reads the file from its beginning, entry by entry, and never looks at the directory at
its end, which Python reads. The check therefore writes the archive anew from what the directory
lists, as a build does, and takes nothing but the very same bytes: so nothing can hide between the
entries, before or behind them, or in their headers.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..base.archive_layout import MANIFEST, SPEC, name_problem, names_that_collide
from ..base.errors import ArchiveError
from ..spec import parse_spec
from .record import (
    MAX_FILES,
    MAX_TEXT_BYTES,
    ArchiveRecord,
    check_contents,
    check_spec,
    raise_problems,
    read_text,
    shown,
    verify_folder,
)

# The first moment that a zip can hold.
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644
_BLOCK_BYTES = 1024**2
# The record at the end: mark, disks, number of entries, size and place of the directory, comment.
_END = struct.Struct("<4s4H2LH")
_END_MARK = b"PK\x05\x06"
_DIRECTORY_ENTRY_BYTES = 2000
_SIZE_IN_ZIP64 = 0xFFFFFFFF


def entry_of(name: str) -> zipfile.ZipInfo:
    """How a file stands in an archive: not compressed, and with nothing of the machine it is from.

    Weights hardly compress, and compressed bytes differ between zlib's versions.
    """
    entry = zipfile.ZipInfo(name, _FIXED_TIME)
    entry.external_attr = _MODE << 16
    return entry


def verify_archive(path: Path) -> ArchiveRecord:
    """Check an archive against its own record, and that it is as a build writes it.

    Args:
        path: a .mar, or the folder of an extracted one.

    Raises:
        ArchiveError: names what is wrong.
        SpecError: a mistake in the archive's spec.
    """
    try:
        if not path.exists():
            raise ArchiveError(f"{path}: no such archive; build it with `ts-ensemble build`")
        if path.is_dir():
            record = verify_folder(path)
            texts = (read_text(path / SPEC), read_text(path / MANIFEST))
        elif not path.is_file():
            raise ArchiveError(f"{path}: neither a file nor a folder")
        else:
            with path.open("rb") as file:
                check_end(file, str(path))
                with zipfile.ZipFile(file) as archive:
                    record = _verify(archive, file, str(path))
                    texts = (archive.read(SPEC), archive.read(MANIFEST))
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ArchiveError(
            f"{path}: it cannot be read as a model archive ({error}); copy or build it again"
        ) from error
    spec = parse_spec(texts[0].decode("utf-8", errors="replace"), source=f"{path}, {SPEC}")
    check_spec(spec, record, texts[1], source=str(path))
    return record


def check_end(file: BinaryIO, source: str) -> None:
    """Check that a file ends with a zip's directory of reasonable size.

    The last bytes say where the directory is; zipfile itself would search for them.

    Args:
        file: opened for reading.
        source: the file's name, for messages.

    Raises:
        ArchiveError: it does not end so, or lists more files than an archive has.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()
    if len(end) < _END.size or not end.startswith(_END_MARK):
        raise ArchiveError(
            f"{source}: it does not end as a model archive does: it is truncated, has bytes behind "
            "its end, or is none; copy or build it again"
        )
    _, _, _, _, entries, directory_size, _, _ = _END.unpack(end)
    # zipfile reads the directory as a whole.
    if entries > MAX_FILES or _DIRECTORY_ENTRY_BYTES * MAX_FILES < directory_size < _SIZE_IN_ZIP64:
        raise ArchiveError(f"{source}: it lists more than {MAX_FILES} files; no archive does")


def _verify(archive: zipfile.ZipFile, file: BinaryIO, source: str) -> ArchiveRecord:
    entries = archive.infolist()
    size = file.seek(0, io.SEEK_END)
    raise_problems(source, _problems_of_entries(entries, size))
    digests = _written_anew(archive, file, source)

    def read(name: str) -> bytes:
        if archive.getinfo(name).file_size > MAX_TEXT_BYTES:
            raise ArchiveError(f"{source}: {name} is larger than any that a build writes")
        return archive.read(name)

    return check_contents(digests, digest=digests.__getitem__, read=read, source=source)


def _problems_of_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    """What no build writes into an archive's directory.

    Args:
        entries: of the directory.
        size: of the archive, in bytes.
    """
    names = Counter(entry.filename for entry in entries)
    for name, count in names.items():
        if count > 1:
            yield f"{name} is in it {count} times"
    for first, second in names_that_collide(names):
        yield f"{first} and {second} are one name to some file systems"
    for entry in entries:
        name = shown(entry.filename)
        reason = name_problem(entry.orig_filename)
        if reason is not None:
            yield f"the name {entry.orig_filename[:100]!r} cannot be: {reason}"
        if entry.flag_bits & 1:
            yield f"{name} is encrypted"
        if entry.compress_type != zipfile.ZIP_STORED:
            yield f"{name} is compressed"
        elif entry.compress_size != entry.file_size:
            yield f"{name} has {entry.compress_size} bytes and says {entry.file_size}"
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            yield f"{name} is a link or no regular file"
    if sum(entry.file_size for entry in entries) > size:
        yield "its files say that they have more bytes than the archive"


def _written_anew(archive: zipfile.ZipFile, file: BinaryIO, source: str) -> dict[str, str]:
    """Compare an archive with how a build would write its contents.

    Returns:
        The files' SHA-256 in hexadecimal, by name.

    Raises:
        ArchiveError: the bytes differ.
    """
    digests = {}
    compared = _Compared(file)
    with zipfile.ZipFile(compared, "w", zipfile.ZIP_STORED) as anew:
        for name in sorted(archive.namelist()):
            entry = entry_of(name)
            entry.file_size = archive.getinfo(name).file_size
            digest = hashlib.sha256()
            with archive.open(name) as contents, anew.open(entry, "w") as copy:
                try:
                    while block := contents.read(_BLOCK_BYTES):
                        digest.update(block)
                        copy.write(block)
                except (zipfile.BadZipFile, EOFError):
                    raise ArchiveError(
                        f"{source}: the archive is not as it was built: {name} was changed (its "
                        "checksum); build it again"
                    ) from None
            digests[name] = digest.hexdigest()
    place = compared.first_difference
    if place is not None:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        before = [entry.filename for entry in entries if entry.header_offset <= place]
        where = f"at {before[-1]}" if before else "before its first file"
        raise ArchiveError(
            f"{source}: the archive is not as it was built: byte {place} ({where}) is another than "
            "its files need, so something may hide there; build it again"
        )
    return digests


class _Compared(io.RawIOBase):
    """A file to write into, which only compares what is written with what another file has there.

    Args:
        original: the other file.
    """

    def __init__(self, original: BinaryIO) -> None:
        super().__init__()
        self._original = original
        self._position = 0
        # Headers are written twice, with the sizes at last: the last word on a place counts.
        self._same: dict[int, bool] = {}

    @property
    def first_difference(self) -> int | None:
        """Where the files differ first, or only one of them goes on; None if they are the same."""
        places = [place for place, same in self._same.items() if not same]
        if self._position != self._original.seek(0, io.SEEK_END):
            places.append(self._position)
        return min(places, default=None)

    def writable(self) -> bool:
        """It takes anything."""
        return True

    def seekable(self) -> bool:
        """It remembers a position."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position from the beginning."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("from the beginning only")
        self._position = offset
        return offset

    def write(self, data: Any) -> int:
        """Compare."""
        content = bytes(data)
        if content:
            self._original.seek(self._position)
            self._same[self._position] = self._original.read(len(content)) == content
            self._position += len(content)
        return len(content)
