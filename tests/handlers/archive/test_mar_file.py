"""An archive as one file: the whole one is accepted, every other zip file is refused."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_refusals import Contents, refusal

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import verify_archive, zip_entry
from torchserve_ensemble.handlers.base.errors import ArchiveError


def test_a_whole_archive_is_accepted(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = verify_archive(archive).digest
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "folder")
    assert verify_archive(tmp_path / "folder").digest == digest
    assert main(["verify", str(archive)]) == 0
    assert digest in capsys.readouterr().out
    assert main(["verify", str(archive), "--digest", digest]) == 0
    assert main(["verify", str(archive), "--digest", "sha256:00"]) == 1
    assert f"has the digest {digest}, not sha256:00" in capsys.readouterr().err


def raw(contents: Contents, *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """Return an archive's bytes, with further entries at its end."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in sorted(contents):
            opened.writestr(zip_entry(name), contents[name])
        for entry, content in more:
            opened.writestr(entry, content)
    return file.getvalue()


def entry(
    name: str, *, mode: int = 0o100644, compress: int = zipfile.ZIP_STORED
) -> zipfile.ZipInfo:
    """Describe an entry of a zip file."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = compress
    return info


def central(content: bytes, name: str) -> int:
    """Return the offset of a file's entry in the directory at the archive's end."""
    return content.rindex(name.encode()) - 46


def patched(content: bytes, place: int, new: bytes) -> bytes:
    """Return the content with other bytes from an offset on."""
    return content[:place] + new + content[place + len(new) :]


def disguised(contents: Contents) -> Iterator[tuple[str, bytes, str]]:
    """Make files that different readers of zip files understand differently.

    Yields:
        What was done, the file's bytes, and what the refusal must say.
    """
    # Offsets in an entry of the directory (APPNOTE.TXT 4.3.12): 8 flags, 10 compression, 16 CRC,
    # 20 compressed size, 24 size, 38 attributes, 42 offset of the local header, 46 name.
    whole = raw(contents)
    notes = "ensemble/notes.txt"
    place = central(whole, notes)
    local = struct.unpack_from("<L", whole, place + 42)[0]
    directory = struct.unpack_from("<L", whole, len(whole) - 6)[0]
    yield "empty", b"", "does not end as a model archive does"
    yield "no zip", b"x" * 1000, "does not end as a model archive does"
    yield "truncated", whole[:-1], "does not end as a model archive does"
    yield "half", whole[: len(whole) // 2], "does not end as a model archive does"
    yield "appended", whole + b"junk", "does not end as a model archive does"
    yield "two", whole + whole, "byte "
    yield "prepended", b"#!/bin/sh\n" + whole, "byte 0 (before its first file)"
    hidden = raw({"sitecustomize.py": b"import os"})
    hidden = hidden[: struct.unpack_from("<L", hidden, len(hidden) - 6)[0]]
    yield "hidden before", hidden + whole, "byte "
    between = whole[:directory] + hidden + whole[directory:-6]
    between += struct.pack("<LH", directory + len(hidden), 0)
    yield "hidden from the directory", between, f"byte {directory} "
    yield (
        "comment",
        patched(whole, len(whole) - 2, b"\x04\0") + b"junk",
        "does not end as a model archive does",
    )
    yield "twice", raw(contents, (entry(notes), b"other")), f"{notes} is in it 2 times"
    link = entry("ensemble/link", mode=0o120777)
    yield "link", raw(contents, (link, b"/etc/passwd")), "ensemble/link is a link"
    listed = patched(whole, place + 38, struct.pack("<L", 0o120777 << 16))
    yield "listed link", listed, f"{notes} is a link"
    yield "device", patched(whole, place + 38, struct.pack("<L", 0o020666 << 16)), f"{notes} is a l"
    executable = patched(whole, place + 38, struct.pack("<L", 0o100777 << 16))
    yield "executable", executable, "byte "
    yield "encrypted", patched(whole, place + 8, b"\x01\0"), f"{notes} is encrypted"
    deflated = entry("ensemble/x", compress=zipfile.ZIP_DEFLATED)
    yield "bomb", raw(contents, (deflated, b"\0" * 10**8)), "ensemble/x is compressed"
    yield "odd compression", patched(whole, place + 10, b"\x63\0"), f"{notes} is compressed"
    larger = patched(whole, place + 24, struct.pack("<L", 10**9))
    yield "other sizes", larger, f"{notes} takes 5 bytes and claims 1000000000"
    both = patched(larger, place + 20, struct.pack("<L", 10**9))
    yield "large sizes", both, "claim more bytes than the archive has"
    yield "other local name", patched(whole, local + 30, b"X"), "differ"
    yield "other local size", patched(whole, local + 18, b"\x04"), f"byte {local} (at {notes})"
    yield "local flag", patched(whole, local + 6, b"\x08"), f"byte {local} (at {notes})"
    yield "local date", patched(whole, local + 12, b"\x01"), f"byte {local} (at {notes})"
    yield "checksum", patched(whole, place + 16, b"\0\0\0\0"), f"{notes} was changed (its checksum"
    zeros = patched(whole, place, b"PK\x01\x03")
    yield "no directory", zeros, "cannot be read as a model archive"
    many = patched(whole, len(whole) - 12, struct.pack("<H", 60_000))
    yield "many", many, "more than 10000 files"
    with_nul = patched(whole, place + 46 + len("ensemble/"), b"\0")
    yield "nul in a name", with_nul, "an invisible character"


def test_files_that_zip_readers_understand_differently_are_refused(
    contents: Contents, tmp_path: Path
) -> None:
    for what, content, expected in disguised(contents):
        path = tmp_path / "a.mar"
        path.write_bytes(content)
        assert expected in refusal(path), what


def test_a_change_of_any_byte_is_refused(contents: Contents, tmp_path: Path) -> None:
    whole = raw(contents)
    path = tmp_path / "a.mar"
    directory = struct.unpack_from("<L", whole, len(whole) - 6)[0]
    for place in (*range(0, directory, 1999), *range(directory, len(whole), 29)):
        path.write_bytes(patched(whole, place, bytes([whole[place] ^ 0x41])))
        refusal(path)


def test_paths_without_an_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such archive"):
        verify_archive(tmp_path / "none.mar")
    os.mkfifo(tmp_path / "pipe.mar")
    with pytest.raises(ArchiveError, match="neither a file nor a folder"):
        verify_archive(tmp_path / "pipe.mar")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match="was not built by `ts-ensemble build`"):
        verify_archive(tmp_path / "folder")
