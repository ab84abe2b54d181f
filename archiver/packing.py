"""Writes the zip file of an archive, block by block, so that its size does not matter.

The bytes of an archive depend on nothing but its contents: entries are sorted, all have the same
fixed time, and none is compressed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..handlers.archive.mar_file import zip_entry

BLOCK_BYTES = 1024**2
"""Weights are read, hashed and written in blocks of this size."""


@dataclass(frozen=True)
class Stream:
    """Contents of a file that are fetched while the archive is written.

    Attributes:
        num_bytes: size of the contents.
        blocks: returns the contents, block by block, each time that it is called.
    """

    num_bytes: int
    blocks: Callable[[], Iterable[bytes]]


def write_entries(
    contents: Mapping[str, bytes | Path | Stream],
    target: Path,
    *,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the zip file of an archive.

    It is written beside the target and then moved, so that nobody can read half of an archive.

    Args:
        contents: path of each file in the archive -> its contents, or the file that holds them.
        target: path of the archive; an existing file is replaced.
        on_bytes: called after each block, with the number of bytes in it.
    """
    unfinished = target.with_suffix(f".{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                content = as_stream(contents[name])
                entry = zip_entry(name)
                # zipfile decides by the expected size whether an entry needs the ZIP64 format.
                entry.file_size = content.num_bytes
                with archive.open(entry, "w") as file:
                    for block in content.blocks():
                        file.write(block)
                        on_bytes(len(block))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def as_stream(content: bytes | Path | Stream) -> Stream:
    """Return contents, wherever they are, as blocks."""
    match content:
        case bytes():
            return Stream(len(content), lambda: [content])
        case Path():
            return Stream(content.stat().st_size, lambda: blocks_of(content))
        case Stream():
            return content


def blocks_of(path: Path) -> Iterator[bytes]:
    """Read a file block by block."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def entries_of(archive: zipfile.ZipFile) -> dict[str, Stream]:
    """Return the files of an archive, by path, to be read block by block while it is open."""

    def blocks(entry: zipfile.ZipInfo) -> Iterator[bytes]:
        with archive.open(entry) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    return {
        entry.filename: Stream(entry.file_size, partial(blocks, entry))
        for entry in archive.infolist()
    }
