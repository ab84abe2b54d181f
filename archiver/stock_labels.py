"""Reads the labels of stock archives, which must be the same in all archives of one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..handlers.base.errors import ArchiveError
from ..handlers.spec.labels_file import LabelsError, read_labels
from .stock_archive import LABELS, StockArchive


@dataclass(frozen=True)
class StockLabels:
    """The labels that several archives have in common.

    Attributes:
        names: the labels, in the order of the network's outputs.
        source: the archive or file that they were read from.
        content: contents of the file of labels, in the format of index_to_name.json.
    """

    names: tuple[str, ...]
    source: str
    content: bytes


def common_labels(archives: Sequence[StockArchive], labels_file: Path | None) -> StockLabels:
    """Read the labels of all archives, and check that they are the same in the same order.

    Args:
        archives: the archives. Those without a file of labels are left out.
        labels_file: a further file of labels, which must hold the same labels.

    Raises:
        ArchiveError: there is no file of labels, one cannot be read, or two of them differ.
    """
    contents: list[tuple[str, bytes]] = []
    if labels_file is not None:
        try:
            contents.append((str(labels_file), labels_file.read_bytes()))
        except OSError as error:
            raise ArchiveError(f"{labels_file}: cannot be read: {error.strerror}") from error
    contents += [(str(each.path), each.read(LABELS)) for each in archives if each.has_labels]
    if not contents:
        raise ArchiveError(
            f"no archive has {LABELS}, so TorchServe answers numbers; name the labels in a file "
            'like {"0": "cat", "1": "dog"} and give it as --labels FILE'
        )
    first, *others = [_read(source, content) for source, content in contents]
    for other in others:
        _check_equal(first, other)
    return first


def _read(source: str, content: bytes) -> StockLabels:
    """Read the labels in the contents of one file.

    Args:
        source: the archive or file that they come from, for messages.
        content: contents of the file of labels.

    Raises:
        ArchiveError: the contents are not a list of labels.
    """
    try:
        names = read_labels(content, source=LABELS)
    except LabelsError as error:
        raise ArchiveError(f"{source}: {error}") from None
    return StockLabels(names, source, content)


def _check_equal(first: StockLabels, second: StockLabels) -> None:
    """Check that two archives have the same labels in the same order.

    Raises:
        ArchiveError: the number of labels differs, or a label does.
    """
    if len(first.names) != len(second.names):
        raise ArchiveError(
            f"{first.source} has {len(first.names)} labels and {second.source} has "
            f"{len(second.names)}: the members of an ensemble have the same labels"
        )
    for index, (label, other) in enumerate(zip(first.names, second.names, strict=True)):
        if label != other:
            raise ArchiveError(
                f"output {index} is {label!r} in {first.source} and {other!r} in {second.source}: "
                "the members of an ensemble have the same labels in the same order"
            )
