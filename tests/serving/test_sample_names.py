"""Each prediction is named by the path of its file, whatever else is in its request."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from torchserve_ensemble.serving.sample_names import in_batches, with_names


def names(predictions: list[str], files: list[str]) -> list[str]:
    return [each["sample"] for each in with_names([{"sample": p} for p in predictions], files)]


def zipped(*entries: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for entry in entries:
            archive.writestr(entry, b"content")
    return file.getvalue()


def tarred(*entries: str, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for entry in entries:
            archive.addfile(tarfile.TarInfo(entry), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("predictions", "files", "expected"),
    [
        (["file", "file"], ["a/1.png", "a/2.png"], ["a/1.png", "a/2.png"]),
        (["file[0]", "file[1]"], ["a.npy"], ["a.npy[0]", "a.npy[1]"]),
        (
            ["file[0]", "file[1][0]", "file[1][1]", "file[2][0]", "file[3]"],
            ["a.png", "b.npy", "c.npy", "d.png"],
            ["a.png", "b.npy[0]", "b.npy[1]", "c.npy[0]", "d.png"],
        ),
        (["x/1.png", "2.png"], ["a.zip"], ["a.zip/x/1.png", "a.zip/2.png"]),
        # It cannot be told which file these belong to.
        (["file[0]", "1.png", "2.png"], ["a.png", "b.zip"], ["file[0]", "1.png", "2.png"]),
        (["file[0]"], ["a.png", "b.png"], ["file[0]"]),
        # A worker of an earlier version numbers the rows of each file from 0.
        (
            ["file[0]", "file[1]", "file[0]", "file[1]"],
            ["a.npy", "b.npy"],
            ["file[0]", "file[1]", "file[0]", "file[1]"],
        ),
        (["file", "file[0]", "file[1]"], ["a.png", "b.npy"], ["file", "file[0]", "file[1]"]),
    ],
)
def test_names(predictions: list[str], files: list[str], expected: list[str]) -> None:
    assert names(predictions, files) == expected


@pytest.mark.parametrize(
    "archive", [zipped("1.png", "2.png"), tarred("1.png"), tarred("1.png", mode="w:gz")]
)
def test_an_archive_has_a_request_of_its_own(archive: bytes) -> None:
    files = [("1.png", b"1"), ("2.png", b"2"), ("3.zip", archive), ("4.png", b"4")]
    batches = [[name for name, _ in batch] for batch in in_batches(files, 32, {})]
    assert batches == [["1.png", "2.png"], ["3.zip"], ["4.png"]]


def test_but_a_sequence_stays_one_request() -> None:
    files = [("1.png", b"1"), ("2.zip", zipped("a.png")), ("3.png", b"3")]
    assert list(in_batches(files, 3, {"smooth": "majority"})) == [files]


def test_batches_are_as_large_as_they_may_be() -> None:
    files = [(str(number), b"") for number in range(7)]
    assert [len(batch) for batch in in_batches(iter(files), 3, {})] == [3, 3, 1]
