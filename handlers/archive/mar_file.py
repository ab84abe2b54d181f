"""Checks a model archive as one file, before TorchServe extracts it.

TorchServe puts the extracted folder first on the path of the worker's Python. The start of that
Python alone runs a `sitecustomize.py` from there. So an altered archive must not reach TorchServe
at all.

TorchServe reads the zip file from its beginning, entry by entry, and never looks at the directory
at its end. Python reads that directory instead. The check therefore builds the archive once more
from the files that the directory lists, and accepts only a file of the very same bytes. So nothing
can hide between the entries, before them, behind them or in their headers.
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
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.archive_layout import (
    MANIFEST,
    RECORD,
    SIGNATURE,
    SPEC,
    name_problem,
    names_that_collide,
)
from ..base.errors import ArchiveError
from ..base.quoting import printable
from ..spec import EnsembleSpec, parse_spec
from .record import ArchiveRecord
from .signature import Signature, read_signature
from .verification import (
    MAX_FILES,
    MAX_TEXT_BYTES,
    check_contents,
    check_spec,
    raise_problems,
    read_text,
    verify_folder,
)

if TYPE_CHECKING:
    from .trusted_keys import TrustedKeys

# The earliest time that a zip file can hold.
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o644
_BLOCK_BYTES = 1024**2
# The record at the end of a zip file: signature, two disk numbers, two numbers of entries, size and
# offset of the directory, length of the comment.
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
# Twice the longest name that a file of an archive may have (`name_problem`).
_MAX_DIRECTORY_BYTES_PER_FILE = 2000
# This value says that the real size stands in a ZIP64 record.
_SIZE_IN_ZIP64 = 0xFFFFFFFF


def zip_entry(name: str) -> zipfile.ZipInfo:
    """Return the zip entry under which a build writes a file: fixed time and mode, not compressed.

    Weights hardly compress, and the bytes that compression gives differ between versions of zlib.
    """
    entry = zipfile.ZipInfo(name, _FIXED_TIME)
    entry.external_attr = _FILE_MODE << 16
    return entry


def verify_archive(path: Path, *, trusted: TrustedKeys | None = None) -> ArchiveRecord:
    """Check an archive against its own record, and that its bytes are those that a build writes.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.
        trusted: keys of which one must have signed the archive; None: any archive will do, signed
            or not.

    Raises:
        ArchiveError: the archive was altered, is damaged or was not built by this project, or none
            of the trusted keys signed it.
        SpecError: the archive's spec has a mistake.
    """
    try:
        if not path.exists():
            raise ArchiveError(f"{path}: no such archive; build it with `ts-ensemble build`")
        if path.is_dir():
            record = verify_folder(path, trusted=trusted)
            spec_text, manifest = read_text(path / SPEC), read_text(path / MANIFEST)
        elif not path.is_file():
            raise ArchiveError(f"{path}: neither a file nor a folder")
        else:
            with path.open("rb") as file:
                check_zip_end(file, str(path))
                with zipfile.ZipFile(file) as archive:
                    record = _verify_file(archive, file, str(path), trusted)
                    spec_text, manifest = archive.read(SPEC), archive.read(MANIFEST)
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ArchiveError(
            f"{path}: it cannot be read as a model archive ({error}); copy or build it again"
        ) from error
    spec = parse_spec(spec_text.decode("utf-8", errors="replace"), source=f"{path}, {SPEC}")
    check_spec(spec, record, manifest, source=str(path))
    return record


def signature_of(path: Path) -> tuple[bytes, Signature | None]:
    """Read the record of an archive that `verify_archive` has accepted, and its signature.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.

    Returns:
        The contents of the record, and its signature, or None if the archive is not signed.
    """
    if path.is_dir():
        files = {name: path / name for name in (RECORD, SIGNATURE)}
        contents = {name: read_text(file) for name, file in files.items() if file.exists()}
    else:
        with zipfile.ZipFile(path) as archive:
            names = {RECORD, SIGNATURE} & set(archive.namelist())
            contents = {name: archive.read(name) for name in names}
    record = contents[RECORD]
    if SIGNATURE not in contents:
        return record, None
    return record, read_signature(contents[SIGNATURE], record, source=str(path))


def read_file(path: Path, name: str) -> bytes:
    """Read one file of an archive that `verify_archive` has accepted.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.
        name: path of the file in the archive.
    """
    if path.is_dir():
        return (path / name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def spec_of(path: Path) -> EnsembleSpec:
    """Read the spec of an archive that `verify_archive` has accepted.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.

    Raises:
        SpecError: the spec has a mistake.
    """
    return parse_spec(read_file(path, SPEC).decode(), source=f"{path}, {SPEC}")


def check_zip_end(file: BinaryIO, source: str) -> None:
    """Check that a file ends with the end record of a zip file that lists a reasonable directory.

    zipfile itself would search for the end record, and so accept bytes behind it.

    Args:
        file: the file, opened for reading.
        source: the file's name, for messages.

    Raises:
        ArchiveError: the end record is missing, or lists more files than an archive may have.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_RECORD.size))
    end = file.read()
    if len(end) < _END_RECORD.size or not end.startswith(_END_SIGNATURE):
        raise ArchiveError(
            f"{source}: it does not end as a model archive does: it is truncated, has further "
            "bytes at its end, or is no archive; copy or build it again"
        )
    _, _, _, _, num_entries, directory_bytes, _, _ = _END_RECORD.unpack(end)
    # zipfile reads the whole directory into memory.
    max_directory_bytes = _MAX_DIRECTORY_BYTES_PER_FILE * MAX_FILES
    if num_entries > MAX_FILES or max_directory_bytes < directory_bytes < _SIZE_IN_ZIP64:
        raise ArchiveError(f"{source}: it lists more than {MAX_FILES} files; no archive does")


def ambiguous_names(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield one phrase for each name that stands for more than one file.

    Args:
        entries: the entries of an archive's directory.
    """
    names = Counter(entry.filename for entry in entries)
    for name, count in names.items():
        if count > 1:
            yield f"{printable(name)} is in it {count} times"
    for first, second in names_that_collide(names):
        yield f"{printable(first)} and {printable(second)} are one name to some file systems"


def _verify_file(
    archive: zipfile.ZipFile, file: BinaryIO, source: str, trusted: TrustedKeys | None
) -> ArchiveRecord:
    """Check the entries, the bytes and the record of an archive that is one file.

    Raises:
        ArchiveError: the archive was altered, is damaged or was not built by this project.
    """
    entries = archive.infolist()
    size = file.seek(0, io.SEEK_END)
    raise_problems(source, _problems_of_entries(entries, size))
    digests = _compare_with_rebuilt(archive, file, source)

    def read(name: str) -> bytes:
        if archive.getinfo(name).file_size > MAX_TEXT_BYTES:
            raise ArchiveError(f"{source}: {name} is larger than a build ever writes it")
        return archive.read(name)

    return check_contents(
        digests, digest=digests.__getitem__, read=read, source=source, trusted=trusted
    )


def _problems_of_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    """Find what a build never writes into the directory of an archive.

    Args:
        entries: the entries of the archive's directory.
        size: size of the archive in bytes.
    """
    yield from ambiguous_names(entries)
    for entry in entries:
        name = printable(entry.filename)
        reason = name_problem(entry.orig_filename)
        if reason is not None:
            yield f"the name {entry.orig_filename[:100]!r} is not allowed: {reason}"
        if entry.flag_bits & 1:
            yield f"{name} is encrypted"
        if entry.compress_type != zipfile.ZIP_STORED:
            yield f"{name} is compressed"
        elif entry.compress_size != entry.file_size:
            yield f"{name} takes {entry.compress_size} bytes and claims {entry.file_size}"
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            yield f"{name} is a link or no regular file"
    if sum(entry.file_size for entry in entries) > size:
        yield "its files claim more bytes than the archive has"


def _compare_with_rebuilt(archive: zipfile.ZipFile, file: BinaryIO, source: str) -> dict[str, str]:
    """Compare an archive, byte by byte, with the one that a build would make of its files.

    Returns:
        Path of each file in the archive -> its SHA-256 in hexadecimal.

    Raises:
        ArchiveError: the bytes differ.
    """
    digests = {}
    comparison = _ComparingWriter(file)
    with zipfile.ZipFile(comparison, "w", zipfile.ZIP_STORED) as rebuilt:
        for name in sorted(archive.namelist()):
            entry = zip_entry(name)
            entry.file_size = archive.getinfo(name).file_size
            digest = hashlib.sha256()
            with archive.open(name) as contents, rebuilt.open(entry, "w") as copy:
                try:
                    while block := contents.read(_BLOCK_BYTES):
                        digest.update(block)
                        copy.write(block)
                except (zipfile.BadZipFile, EOFError):
                    raise ArchiveError(
                        f"{source}: the archive is not as it was built: {name} was changed (its "
                        "checksum is wrong); build it again"
                    ) from None
            digests[name] = digest.hexdigest()
    offset = comparison.first_difference
    if offset is not None:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        before = [entry.filename for entry in entries if entry.header_offset <= offset]
        where = f"at {before[-1]}" if before else "before its first file"
        raise ArchiveError(
            f"{source}: the archive is not as it was built: byte {offset} ({where}) is not what a "
            "build of its files writes there, so something may be hidden; build it again"
        )
    return digests


class _ComparingWriter(io.RawIOBase):
    """A file for writing that stores nothing, but compares what is written with another file.

    Args:
        original: the file to compare with.
    """

    def __init__(self, original: BinaryIO) -> None:
        super().__init__()
        self._original = original
        self._position = 0
        # Offset of each write -> whether the original has the same bytes there. zipfile writes each
        # header twice, the second time with the final sizes; only the last write to an offset
        # counts.
        self._is_equal: dict[int, bool] = {}

    @property
    def first_difference(self) -> int | None:
        """Offset of the first write that differs; None if the files are equal.

        If only the lengths differ, it is the offset at which the written file ends.
        """
        offsets = [offset for offset, is_equal in self._is_equal.items() if not is_equal]
        if self._position != self._original.seek(0, io.SEEK_END):
            offsets.append(self._position)
        return min(offsets, default=None)

    def writable(self) -> bool:
        """Return True: zipfile may write."""
        return True

    def seekable(self) -> bool:
        """Return True: zipfile may go back to write a header again."""
        return True

    def tell(self) -> int:
        """Return the offset at which the next write is compared."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset from the beginning."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("from the beginning only")
        self._position = offset
        return offset

    def write(self, data: Any) -> int:
        """Compare bytes with those of the original at the present offset."""
        content = bytes(data)
        if content:
            self._original.seek(self._position)
            self._is_equal[self._position] = self._original.read(len(content)) == content
            self._position += len(content)
        return len(content)
