"""Names of samples: requests are divided so that each answer can be given the path of its file.

A form carries no file names to the worker, since TorchServe drops them. Every image of a form is a
part named ``file``. The worker answers with that name, and with numbers for the parts and for the
rows of arrays: ``file``, or ``file[3]`` for the fourth of several files, and ``file[3][0]`` for its
first row. An entry of an archive is named by its own path in the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

FIELD = "file"
"""Name of every part of a form that is an image or a bundle of images."""

SEQUENCE_OPTIONS = ("smooth", "frame_order", "stream", "frames")
"""Options that concern all samples of a request together; such a sequence is one request."""

_ONLY_FILE = re.compile(rf"{FIELD}(?P<row>\[\d+\])?")
_ONE_OF_SEVERAL_FILES = re.compile(rf"{FIELD}\[(?P<file>\d+)\](?P<row>\[\d+\])?")
_ARCHIVE_SIGNATURES = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
"""First bytes of zip, gzip, bzip2 and xz files."""

_TAR_SIGNATURE, _TAR_SIGNATURE_AT = b"ustar", 257


def in_batches(
    images: Iterable[tuple[str, bytes]], batch_size: int, options: Mapping[str, Any]
) -> Iterator[list[tuple[str, bytes]]]:
    """Divide images into those of one request each.

    An archive has a request of its own, since the number of its entries is not known here; with it
    in one request, the answers for other files could not be told apart.

    Args:
        images: path and contents of each file.
        batch_size: largest number of files in one request.
        options: options of the requests. With one of `SEQUENCE_OPTIONS` archives stay among the
            other files, since all belong to one sequence.
    """
    is_sequence = any(name in options for name in SEQUENCE_OPTIONS)
    batch: list[tuple[str, bytes]] = []
    for path, content in images:
        if not is_sequence and _is_archive(content):
            if batch:
                yield batch
            yield [(path, content)]
            batch = []
            continue
        batch.append((path, content))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def with_names(predictions: list[dict[str, Any]], files: Sequence[str]) -> list[dict[str, Any]]:
    """Put the paths of the files into predictions, as ``sample``.

    A row of an array becomes ``a.npy[3]``, an entry of an archive ``a.zip/entry.png``. Where it
    cannot be told which file a prediction belongs to, the worker's names stay.

    Args:
        predictions: elements of ``predictions`` of one answer, in its order.
        files: paths of the files of its request, in order.
    """
    if len(predictions) == len(files):
        return [{**each, "sample": file} for each, file in zip(predictions, files, strict=True)]
    names = [str(each.get("sample", "")) for each in predictions]
    paths = _paths_in(files[0], names) if len(files) == 1 else _paths(files, names)
    if paths is None:
        return predictions
    return [{**each, "sample": path} for each, path in zip(predictions, paths, strict=True)]


def _paths_in(file: str, names: Sequence[str]) -> list[str]:
    """Return the path of each sample of the only file of a request."""
    matches = [_ONLY_FILE.fullmatch(name) for name in names]
    return [
        f"{file}/{name}" if match is None else file + (match["row"] or "")
        for name, match in zip(names, matches, strict=True)
    ]


def _paths(files: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """Return the path of each sample of several files; None if the names do not tell the file."""
    matches = [match for name in names if (match := _ONE_OF_SEVERAL_FILES.fullmatch(name))]
    numbers = [int(match["file"]) for match in matches]
    # A worker of an earlier version numbers the rows of each file only, from 0 each time.
    if len(matches) < len(names) or numbers != sorted(numbers):
        return None
    if set(numbers) != set(range(len(files))):
        return None
    return [files[int(match["file"])] + (match["row"] or "") for match in matches]


def _is_archive(content: bytes) -> bool:
    return (
        content.startswith(_ARCHIVE_SIGNATURES)
        or content[_TAR_SIGNATURE_AT : _TAR_SIGNATURE_AT + 5] == _TAR_SIGNATURE
    )
