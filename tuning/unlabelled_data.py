"""Finds images in data that say nothing about what the images show."""

from __future__ import annotations

import csv
from pathlib import Path

from ..handlers.base.errors import RequestError, SpecError
from ..serving import image_sources
from .labelled_data import Answering


def has_labels(source: Path, ensemble: Answering) -> bool:
    """Return whether data are labelled, as far as their layout says.

    A folder with images directly in it is not: labelled images lie in a folder for each label. Nor
    is a CSV file without a column of labels, or a single image.

    Raises:
        SpecError: there are no such data.
    """
    if source.is_dir():
        return not any(_is_image(each) for each in source.iterdir())
    if not source.exists():
        raise SpecError(f"{source}: no such folder or file")
    if _is_image(source):
        return False
    columns = _csv_columns(source)
    return "file" not in columns or not {"label", *ensemble.labels}.isdisjoint(columns)


def unlabelled_images(source: Path) -> tuple[Path, ...]:
    """List the images in a folder, in a CSV file's column ``file``, or the one image.

    Raises:
        SpecError: there are no images.
    """
    if source.is_dir() or _is_image(source):
        try:
            return tuple(Path(path) for path in image_sources.find([str(source)]))
        except RequestError as error:
            raise SpecError(str(error)) from error
    if "file" not in _csv_columns(source):
        raise SpecError(f"{source}: line 1: column 'file' is missing")
    with source.open(newline="", encoding="utf-8-sig") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["file"]]
    if not names:
        raise SpecError(f"{source}: names no image")
    return tuple(source.parent / name for name in names)


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.is_file() and path.suffix.lower() in image_sources.SUFFIXES and not is_hidden


def _csv_columns(source: Path) -> list[str]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file).fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{source}: cannot be read as CSV: {error}") from error
