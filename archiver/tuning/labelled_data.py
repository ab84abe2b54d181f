"""Labelled images: an ImageFolder, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...handlers.errors import SpecError
from ...handlers.spec import EnsembleSpec
from ...handlers.strict_yaml import nearest
from ...handlers.tasks import Task
from ...serving.image_sources import SUFFIXES


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Images and what they show.

    Attributes:
        name: of the folder or file, for reports.
        paths: N files.
        targets: (N, C) over the spec's score labels: bool, or float32 for regression.
        digest: ``sha256:...`` over every image's bytes and labels, in order.
    """

    name: str
    paths: tuple[Path, ...]
    targets: Tensor
    digest: str


def read_labelled(source: Path, spec: EnsembleSpec) -> LabelledData:
    """Read an ImageFolder (``FOLDER/LABEL/image``) or a CSV file with a header.

    CSV: a column ``file``, relative to the CSV file; then ``label`` (several of a multilabel
    separated by ``;``), or for regression one column for each of the spec's labels.

    Raises:
        SpecError: nothing there, or an unknown label, with file and line.
    """
    pairs = _folder(source, spec) if source.is_dir() else _csv(source, spec)
    if not pairs:
        raise SpecError(f"{source}: no labelled image; expected FOLDER/LABEL/image or a CSV file")
    digest = hashlib.sha256()
    for path, row in pairs:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SpecError(f"{source}: {path} cannot be read: {error.strerror}") from error
        digest.update(hashlib.sha256(content).digest())
        digest.update(repr(row).encode())
    kind = torch.float32 if spec.task is Task.REGRESSION else torch.bool
    targets = torch.tensor([row for _, row in pairs], dtype=kind)
    return LabelledData(
        source.name, tuple(path for path, _ in pairs), targets, f"sha256:{digest.hexdigest()}"
    )


def _folder(source: Path, spec: EnsembleSpec) -> list[tuple[Path, list[float]]]:
    if spec.task is Task.REGRESSION:
        raise SpecError(f"{source}: a regression's values do not fit folder names; use a CSV file")
    pairs = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        row = _flags([folder.name], spec, str(folder))
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        pairs += [(path, row) for path in files]
    return pairs


def _csv(source: Path, spec: EnsembleSpec) -> list[tuple[Path, list[float]]]:
    columns = ["file", *(spec.labels if spec.task is Task.REGRESSION else ["label"])]
    try:
        with source.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise SpecError(
                    f"{source}: line 1: column '{missing[0]}' is missing; the columns are "
                    f"{', '.join(columns)}"
                )
            return [
                (source.parent / row["file"], _row(row, spec, f"{source}: line {line}"))
                for line, row in enumerate(reader, start=2)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{source}: cannot be read as CSV: {error}") from error


def _row(row: dict[str, str], spec: EnsembleSpec, where: str) -> list[float]:
    if spec.task is not Task.REGRESSION:
        labels = [label.strip() for label in (row["label"] or "").split(";")]
        return _flags([label for label in labels if label], spec, where)
    try:
        return [float(row[label]) for label in spec.labels]
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: {error}; write a number in each column") from None


def _flags(labels: Sequence[str], spec: EnsembleSpec, where: str) -> list[float]:
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
