"""Read labelled images from an ImageFolder or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.suggestions import nearest
from ..handlers.base.tasks import Task
from ..serving.image_sources import SUFFIXES


class _Row(NamedTuple):
    """One labelled image.

    Attributes:
        path: the image.
        targets: C numbers, see `LabelledData`.
        where: the folder, or the file and line, that labels the image; for error messages.
        group: name of its group; empty if the data have no groups.
    """

    path: Path
    targets: list[float]
    where: str
    group: str = ""


class Answering(Protocol):
    """Task and labels of an ensemble: those of an `EnsembleSpec`, or those a server describes."""

    @property
    def task(self) -> Task: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def score_labels(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class LabelledData:
    """N images and what they show.

    Attributes:
        name: name of the folder or file that was read, for reports.
        paths: N files.
        targets: (N, C) over the spec's score labels: bool, or float32 for regression.
        digest: ``sha256:...`` over every image's file name, bytes, labels and group, in order.
        groups: (N,) int64 number of each image's group; None: each image is a group of its own.
    """

    name: str
    paths: tuple[Path, ...]
    targets: Tensor
    digest: str
    groups: Tensor | None = None


def read_labelled(source: Path, spec: Answering) -> LabelledData:
    """Read an ImageFolder (``FOLDER/LABEL/image``) or a CSV file with a header.

    A CSV file has a column ``file``, relative to the CSV file, and a column ``label``; several
    labels of a multilabel task are separated by ``;``. For regression it has one column for each of
    the spec's labels; if there is only one, it may be called ``label`` too. A column ``group`` is
    optional: images with the same value, such as the frames of a video, are taken as dependent.
    Hidden files and folders are left out.

    Raises:
        SpecError: there is no labelled image, or a label is unknown; with file and line.
    """
    rows = _folder(source, spec) if source.is_dir() else _csv(source, spec)
    if not rows:
        raise SpecError(f"{source}: no labelled image; expected FOLDER/LABEL/image or a CSV file")
    digest = hashlib.sha256()
    for row in rows:
        try:
            content = row.path.read_bytes()
        except OSError as error:
            raise SpecError(f"{row.where}: {row.path} cannot be read: {error.strerror}") from error
        digest.update(row.path.name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
        digest.update(repr(row.targets).encode())
        digest.update(row.group.encode())
    dtype = torch.float32 if spec.task is Task.REGRESSION else torch.bool
    return LabelledData(
        name=source.resolve().name,
        paths=tuple(row.path for row in rows),
        targets=torch.tensor([row.targets for row in rows], dtype=dtype),
        digest=f"sha256:{digest.hexdigest()}",
        groups=_group_numbers([row.group for row in rows]),
    )


def _group_numbers(names: Sequence[str]) -> Tensor | None:
    """(N,) number of each group; None if no two images share one."""
    numbers: dict[str, int] = {}
    for name in names:
        numbers.setdefault(name, len(numbers))
    if not any(names) or len(numbers) == len(names):
        return None
    return torch.tensor([numbers[name] for name in names])


def _folder(source: Path, spec: Answering) -> list[_Row]:
    if spec.task is Task.REGRESSION:
        raise SpecError(f"{source}: a regression's values do not fit folder names; use a CSV file")
    rows: list[_Row] = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        flags = _flags([folder.name], spec, str(folder))
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix.lower() in SUFFIXES and not hidden:
                rows.append(_Row(path, flags, str(folder)))
    return rows


def _csv(source: Path, spec: Answering) -> list[_Row]:
    try:
        # Spreadsheets begin a file with a byte order mark.
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = _columns(spec, reader.fieldnames or ())
            missing = [c for c in ("file", *columns) if c not in (reader.fieldnames or ())]
            if missing:
                raise SpecError(
                    f"{source}: line 1: column '{missing[0]}' is missing; the columns are "
                    f"{', '.join(['file', *columns])}"
                )
            rows: list[_Row] = []
            for row in reader:
                where = f"{source}: line {reader.line_num}"
                if not row["file"]:
                    raise SpecError(f"{where}: column 'file' is empty")
                group = row.get("group")
                if group == "":
                    raise SpecError(f"{where}: column 'group' is empty; name each image's group")
                path = source.parent / row["file"]
                rows.append(_Row(path, _targets(row, columns, spec, where), where, group or ""))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{source}: cannot be read as CSV: {error}") from error


def _columns(spec: Answering, given: Sequence[str]) -> list[str]:
    """Name the columns of the CSV file that hold the targets."""
    if spec.task is not Task.REGRESSION:
        return ["label"]
    is_called_label = len(spec.labels) == 1 and spec.labels[0] not in given and "label" in given
    return ["label"] if is_called_label else list(spec.labels)


def _targets(
    row: dict[str, str], columns: Sequence[str], spec: Answering, where: str
) -> list[float]:
    if spec.task is not Task.REGRESSION:
        labels = [label.strip() for label in (row["label"] or "").split(";")]
        return _flags([label for label in labels if label], spec, where)
    try:
        values = [float(row[column]) for column in columns]
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: {error}; write a number in each column") from None
    if not all(map(math.isfinite, values)):
        raise SpecError(f"{where}: {values} must be finite numbers")
    return values


def _flags(labels: Sequence[str], spec: Answering, where: str) -> list[float]:
    """1.0 for each score label that the image shows, else 0.0."""
    for label in labels:
        if label not in spec.labels:
            raise SpecError(
                f"{where}: '{label}' is no label of the spec ({', '.join(spec.labels)})"
                f"{nearest(label, spec.labels)}"
            )
    if spec.task is not Task.MULTILABEL and len(labels) != 1:
        raise SpecError(f"{where}: {len(labels)} labels; task {spec.task} takes one")
    return [float(label in labels) for label in spec.score_labels]
