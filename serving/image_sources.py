"""From what stands on a command line to images: files, folders, patterns and standard input."""

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
"""What is taken from a folder; a file named by itself may have any name."""

STANDARD_INPUT = "-"


def find(names: Sequence[str]) -> list[str]:
    """Paths of images, in the order of the command line; those of a folder in natural order.

    Args:
        names: files; folders, taken with all below them; patterns such as ``shots/*.png``; ``-``.

    Raises:
        RequestError: a name stands for nothing.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or path.is_file():
            found.append(name)
            continue
        inside = path.rglob("*") if path.is_dir() else _pattern(name)
        images = [each for each in inside if each.is_file() and each.suffix.lower() in SUFFIXES]
        if not images:
            kind = "no image in this folder" if path.is_dir() else "no such file, folder or match"
            raise RequestError(f"{name}: {kind}")
        found += [str(each) for each in sorted(images, key=_natural)]
    return found


def read(paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each, read as they are needed.

    Raises:
        RequestError: a file cannot be read.
    """
    for path in paths:
        try:
            data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror}") from error
        yield path, data


def _pattern(name: str) -> Iterator[Path]:
    path = Path(name)
    if not any(sign in name for sign in "*?["):
        return iter(())
    root = Path(path.anchor) if path.is_absolute() else Path()
    return root.glob(str(path.relative_to(root)) if path.is_absolute() else name)


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame9 before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
