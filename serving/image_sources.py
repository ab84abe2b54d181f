"""Finds the images that command-line arguments name: files, folders, patterns, standard input."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..handlers.base.errors import RequestError

SUFFIXES = frozenset(
    {".avif", ".bmp", ".dcm", ".gif", ".jp2", ".jpeg", ".jpg", ".npy", ".png", ".ppm"}
    | {".safetensors", ".tar", ".tif", ".tiff", ".webp", ".zip"}
)
"""Suffixes of the files that are read from a folder; a file that is named itself may have any."""

STANDARD_INPUT = "-"
"""The argument that stands for one image on standard input."""


def find(names: Sequence[str]) -> list[str]:
    """Find the paths of all images that the arguments of a command name.

    Args:
        names: files, folders (searched with all folders below), patterns such as ``shots/*.png``,
            or ``-`` for standard input.

    Returns:
        The paths in the order of the arguments; the images of one folder or pattern in natural
        order, frame9 before frame10.

    Raises:
        RequestError: an argument names no image.
    """
    paths: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or path.is_file():
            paths.append(name)
            continue
        candidates = path.rglob("*") if path.is_dir() else _matches(name)
        images = [each for each in candidates if each.is_file() and each.suffix.lower() in SUFFIXES]
        if not images:
            kind = "no image in this folder" if path.is_dir() else "no such file, folder or match"
            raise RequestError(f"{name}: {kind}")
        paths += [str(each) for each in sorted(images, key=_natural_order)]
    return paths


def read(paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the bytes of each image; a file is read only when it is needed.

    Args:
        paths: paths of images, or ``-`` for standard input.

    Raises:
        RequestError: a file cannot be read.
    """
    for path in paths:
        try:
            data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror}") from error
        yield path, data


def _matches(pattern: str) -> Iterator[Path]:
    """Yield the paths that a pattern matches; none if the text has no wildcard."""
    path = Path(pattern)
    if not any(wildcard in pattern for wildcard in "*?["):
        return iter(())
    root = Path(path.anchor) if path.is_absolute() else Path()
    return root.glob(str(path.relative_to(root)) if path.is_absolute() else pattern)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A sort key that compares numbers by their value: frame9 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
