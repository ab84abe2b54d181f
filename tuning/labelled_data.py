"""Labelled images: an ImageFolder, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.suggestions import nearest
from ..handlers.base.tasks import Task
from ..serving.image_sources import SUFFIXES

_Row = tuple[Path, list[float], str]
"""A file, its targets, and where it is said."""


class Answering(Protocol):
    """What data and answers have to fit: an `EnsembleSpec`, or what a server says of a model."""

    @property
    def task(self) -> Task: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def score_labels(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Images and what they show.

    Attributes:
        name: of the folder or file, for reports.
        paths: N files.
        targets: (N, C) over the spec's score labels: bool, or float32 for regression.
        digest: ``sha256:...`` over every image's file name, bytes and labels, in order.
    """

    name: str
    paths: tuple[Path, ...]
    targets: Tensor
    digest: str


def read_labelled(source: Path, spec: Answering) -> LabelledData:
    """Read an ImageFolder (``FOLDER/LABEL/image``) or a CSV file with a header.

    CSV: a column ``file``, relative to the CSV file; then ``label`` (several of a multilabel
    separated by ``;``), or for regression one column for each of the spec's labels; the only value
    of a regression may stand in ``label`` too. Hidden files and folders are left out.

    Raises:
        SpecError: nothing there, or an unknown label, with file and line.
    """
    rows = _folder(source, spec) if source.is_dir() else _csv(source, spec)
    if not rows:
        raise SpecError(f"{source}: no labelled image; expected FOLDER/LABEL/image or a CSV file")
    digest = hashlib.sha256()
    for path, row, where in rows:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SpecError(f"{where}: {path} cannot be read: {error.strerror}") from error
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
        digest.update(repr(row).encode())
    kind = torch.float32 if spec.task is Task.REGRESSION else torch.bool
    targets = torch.tensor([row for _, row, _ in rows], dtype=kind)
    paths = tuple(path for path, _, _ in rows)
    return LabelledData(source.resolve().name, paths, targets, f"sha256:{digest.hexdigest()}")


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
                rows.append((path, flags, str(folder)))
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
                rows.append(
                    (source.parent / row["file"], _targets(row, columns, spec, where), where)
                )
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{source}: cannot be read as CSV: {error}") from error


def _columns(spec: Answering, given: Sequence[str]) -> list[str]:
    """The columns that the targets stand in."""
    if spec.task is not Task.REGRESSION:
        return ["label"]
    alone = len(spec.labels) == 1 and spec.labels[0] not in given and "label" in given
    return ["label"] if alone else list(spec.labels)


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
    """1.0 for each score label that is there."""
    for label in labels:
        if label not in spec.labels:
            raise SpecError(
                f"{where}: '{label}' is no label of the spec ({', '.join(spec.labels)})"
                f"{nearest(label, spec.labels)}"
            )
    if spec.task is not Task.MULTILABEL and len(labels) != 1:
        raise SpecError(f"{where}: {len(labels)} labels; task {spec.task} takes one")
    return [float(label in labels) for label in spec.score_labels]
