"""Paths of the files in an archive, and the names that files in an archive may have."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

RECORD = "archive.json"
"""Path of the record, which lists the other files of the archive with their SHA-256."""

SIGNATURE = f"{RECORD}.sig"
"""Path of the signature of the record. It is the only other file that the record does not list."""

MANIFEST = "MAR-INF/MANIFEST.json"
"""Path of TorchServe's manifest: the model's name, version and entry."""

ENSEMBLE = "ensemble"
"""Folder with the spec and the files that it names."""

SPEC = f"{ENSEMBLE}/ensemble.yaml"
"""Path of the spec."""

COMPILED = f"{ENSEMBLE}/compiled"
"""Folder with the executables that the build made for another engine than torch."""

SELF_TEST = f"{ENSEMBLE}/selftest.json"
"""Path of the probes, and of what the saved members answered to them at build."""

BOM = "bom.cdx.json"
"""Path of the bill of materials, in CycloneDX's format."""

MODEL_CARD = "README.md"
"""Path of the model card, in Hugging Face's format."""

ENTRY = "ensemble_entry.py"
"""Path of the Python module that TorchServe loads (`handlers.entry`)."""

MODEL_CONFIG = "model-config.yaml"
"""Path of TorchServe's settings of the model, such as its number of workers."""

REQUIREMENTS = "requirements.txt"
"""Path of the list of packages that the server's Python needs beside TorchServe."""

MODEL_SETTINGS = (
    "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout",
)  # fmt: skip
"""The only keys that `MODEL_CONFIG` may have.

Further keys could make TorchServe start another Python interpreter, or torchrun.
"""

_MAX_NAME_BYTES = 1000
_MAX_PART_BYTES = 255
"""Longest name of a file or folder that the usual file systems of Linux can store."""


def name_problem(name: str) -> str | None:
    """Return why a file of an archive may not have this path, as a phrase; None if it may.

    An allowed path stays inside the folder that the archive is extracted to, and means the same
    file on every file system.
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
        return "an archive must not contain Python's byte code"
    return None


def names_that_collide(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find pairs of different names that some file systems take for the same file.

    Such names differ only in case, or in how accented letters are encoded.
    """
    name_by_key: dict[str, str] = {}
    for name in names:
        other = name_by_key.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            yield other, name
