"""Which file lies where in an archive, and which names a file may have there."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

RECORD = "archive.json"
"""The record's place in the archive. It lists every other file."""

MANIFEST = "MAR-INF/MANIFEST.json"
"""What TorchServe reads of an archive: the model's name, version and entry."""

ENSEMBLE = "ensemble"
"""The folder in the archive with the spec and the files that it names."""

SPEC = f"{ENSEMBLE}/ensemble.yaml"
"""The spec's place in the archive."""

COMPILED = f"{ENSEMBLE}/compiled"
"""The folder in the archive with the compiled members, if the spec asks for them."""

ENTRY = "ensemble_entry.py"
"""The module that TorchServe loads."""

MODEL_CONFIG = "model-config.yaml"
"""TorchServe's settings of the model."""

REQUIREMENTS = "requirements.txt"
"""What the server's Python needs beside TorchServe."""

MODEL_SETTINGS = (
    "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout",
)  # fmt: skip
"""Keys of `MODEL_CONFIG`; others could make TorchServe start another Python or torchrun."""

_MAX_NAME_BYTES = 1000
_MAX_PART_BYTES = 255


def name_problem(name: str) -> str | None:
    """Why a file may not have this name in an archive; None if it may.

    Names are those that every file system keeps apart and that stay inside the folder.
    """
    parts = name.split("/")
    if ".." in parts or "." in parts or "" in parts:
        return "it must be a relative path without '.', '..' and '//'"
    if "\\" in name or ":" in name or not name.isprintable():
        return "it has a backslash, a colon or an invisible character"
    if any(part != part.strip(" ").rstrip(".") for part in parts):
        return "a part of it begins or ends with a space, or ends with a dot"
    if len(name.encode()) > _MAX_NAME_BYTES or any(
        len(part.encode()) > _MAX_PART_BYTES for part in parts
    ):
        return f"it is longer than {_MAX_NAME_BYTES} bytes, or {_MAX_PART_BYTES} in one part"
    if "__pycache__" in parts or name.endswith((".pyc", ".pyo")):
        return "byte code of Python is not taken from an archive"
    return None


def names_that_collide(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that some file systems take for one: they differ in case or accents alone."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            yield other, name
