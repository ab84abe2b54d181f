"""Names of samples: requests are divided so that each answer can be given the path of its file.

A form carries no file names to the worker. Every image of a form is a part named ``file``, and the
worker answers with that name for an image, ``file[3]`` for a row of an array, and the entry's own
path for an entry of an archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

FIELD = "file"
"""Name of every part of a form that is an image or a bundle of images."""

SEQUENCE_OPTIONS = ("smooth", "frame_order", "stream", "frames")
"""Options that concern all samples of a request together; such a sequence is one request."""

_OF_FIELD = re.compile(rf"{FIELD}(\[(?P<row>\d+)\])?")
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
    if len(files) == 1:
        owners = [files[0]] * len(predictions)
    else:
        begins_file = [not _is_further_row(name) for name in names]
        if sum(begins_file) != len(files):
            return predictions
        owners = [files[count - 1] for count in accumulate(begins_file)]
    return [
        {**each, "sample": _name_within(owner, name)}
        for each, owner, name in zip(predictions, owners, names, strict=True)
    ]


def _is_archive(content: bytes) -> bool:
    return (
        content.startswith(_ARCHIVE_SIGNATURES)
        or content[_TAR_SIGNATURE_AT : _TAR_SIGNATURE_AT + 5] == _TAR_SIGNATURE
    )


def _is_further_row(name: str) -> bool:
    """Whether a name is that of a row of an array, but not of its first row."""
    match = _OF_FIELD.fullmatch(name)
    return match is not None and match["row"] not in (None, "0")


def _name_within(file: str, name: str) -> str:
    if _OF_FIELD.fullmatch(name):
        return file + name.removeprefix(FIELD)
    return f"{file}/{name}"
