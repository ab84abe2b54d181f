"""Reads labels from a file in TorchServe's format, ``index_to_name.json``.

A spec may name such a file instead of listing the labels. The file is read together with the spec,
so that `EnsembleSpec.labels` always is a tuple of names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from ..base.suggestions import nearest

LABELS_FOLDER = "labels_folder"
"""Key of pydantic's validation context, whose value is the folder of the labels' file, or None."""

LABELS_FILE_ERROR = "labels_file"
"""Pydantic's error type for every mistake in a labels' file; its message is a whole sentence."""

_MAX_BYTES = 1_000_000
"""A spec has at most as many characters; ImageNet's 1,000 labels take 31,000 bytes."""

_MAX_SUGGESTED_FILES = 1000
"""A missing file's name is compared with at most this many files of its folder."""

_OLD_KEY = "object_type_names"
"""TorchServe also reads a list of names under this key, which older examples use."""


class LabelsError(ValueError):
    """A labels' file is missing, or is not in the format of TorchServe's index_to_name.json."""


def labels_from_file(value: Any, information: ValidationInfo) -> Any:
    """Replace the name of a labels' file by the labels; pydantic calls it for the key ``labels``.

    Args:
        value: what the spec says; anything but text is returned as it is.
        information: its context holds `LABELS_FOLDER`.

    Raises:
        PydanticCustomError: the file does not exist, or is not in TorchServe's format.
    """
    if not isinstance(value, str):
        return value
    try:
        folder = (information.context or {}).get(LABELS_FOLDER)
        if folder is None:
            raise LabelsError(
                "names a file, which can be read only beside the spec: write the labels as a list"
            )
        return read_labels(_path_of(value, folder).read_bytes(), source=value)
    except (OSError, LabelsError) as error:
        # Pydantic takes braces in a message for names of values in its context.
        raise PydanticCustomError(LABELS_FILE_ERROR, "{message}", {"message": str(error)}) from None


def read_labels(content: bytes, *, source: str) -> tuple[str, ...]:
    """Read labels in TorchServe's format: ``{"0": "cat"}`` or ``{"0": ["n02123045", "cat"]}``.

    The last text of a list is the label, as in TorchServe. Where several outputs have one label,
    as ImageNet's two "crane", the first text of the list is added: "crane (n02012849)".

    Args:
        content: the file's bytes.
        source: the file's name, for messages.

    Raises:
        LabelsError: the message names what is wrong and where.
    """
    if len(content) > _MAX_BYTES:
        raise LabelsError(f"{source} has more than {_MAX_BYTES} bytes")
    try:
        mapping = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeated_keys)
    except LabelsError as error:
        raise LabelsError(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"{source} is not JSON: {error}") from None
    if isinstance(mapping, dict) and isinstance(mapping.get(_OLD_KEY), list):
        mapping = {str(index): name for index, name in enumerate(mapping[_OLD_KEY])}
    if not isinstance(mapping, dict) or not mapping:
        raise LabelsError(f'{source} must be an object of numbers to names, like {{"0": "cat"}}')
    for index in range(len(mapping)):
        if str(index) not in mapping:
            raise LabelsError(
                f'{source} has {len(mapping)} entries, but none with the key "{index}": number '
                f'the outputs from "0" to "{len(mapping) - 1}"'
            )
    entries = [
        _texts(mapping[str(index)], f'{source}, key "{index}"') for index in range(len(mapping))
    ]
    return _unique_labels(entries)


def _path_of(file: str, folder: Path) -> Path:
    """Find a labels' file in the spec's folder.

    Raises:
        LabelsError: there is no such file, or it lies elsewhere.
    """
    name = PurePosixPath(file)
    if name.is_absolute() or ".." in name.parts or "\\" in file or not file.isprintable():
        raise LabelsError(f"{file[:200]!r} must lie in the spec's folder, written with '/'")
    path = folder / name
    if not path.is_file():
        others = [each.name for each in islice(folder.glob("*.json"), _MAX_SUGGESTED_FILES)]
        raise LabelsError(
            f"no such file: {path}{nearest(file, others)} (labels are a list, or the name of a "
            "file in the format of TorchServe's index_to_name.json)"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LabelsError(
            f"{file} is, or lies behind, a link to {path.resolve()}, outside the spec's folder: "
            "copy the file there"
        )
    if path.stat().st_size > _MAX_BYTES:
        raise LabelsError(f"{file} has more than {_MAX_BYTES} bytes")
    return path


def _without_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs; LabelsError if a key is given twice."""
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise LabelsError(f'the key "{repeated[0][:100]}" is given twice')
    return dict(pairs)


def _texts(entry: Any, place: str) -> list[str]:
    """Return the texts of one entry, which is a text or a list of texts; else raise LabelsError."""
    texts = entry if isinstance(entry, list) else [entry]
    if not texts or not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise LabelsError(f'{place}: must be a name, or a list like ["n02123045", "cat"]')
    if not texts[-1]:
        raise LabelsError(f"{place}: the name is empty")
    return texts


def _unique_labels(entries: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the last text of each entry; where that is not unique, its first text is added."""
    counts = Counter(texts[-1] for texts in entries)
    return tuple(
        f"{texts[-1]} ({texts[0]})" if counts[texts[-1]] > 1 and len(texts) > 1 else texts[-1]
        for texts in entries
    )
