"""Archives of a few bytes for the tests of the registry, and the stores that they are pushed to."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from torchserve_ensemble.archiver.packing import write_entries
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import MANIFEST, RECORD

SHARED = "ensemble/shared.safetensors"
"""Path of the weights that all versions have in common."""

SHARED_BYTES = b"s" * 300_000


def small_archive(
    folder: Path, version: str = "1.0", *, weights: bytes = b"weights", signature: bytes = b""
) -> Path:
    """Write an archive of the model ``trees`` with four or five files."""
    model = {"modelName": "trees", "modelVersion": version}
    contents: dict[str, bytes] = {
        MANIFEST: json.dumps({"model": model}).encode(),
        "ensemble/own.safetensors": weights,
        "ensemble/empty": b"",
        SHARED: SHARED_BYTES,
    }
    files = {path: sha256_of_bytes(content) for path, content in contents.items()}
    contents[RECORD] = ArchiveRecord(files, {}).to_json().encode()
    if signature:
        contents[f"{RECORD}.sig"] = signature
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trees-{version}.mar"
    write_entries(contents, path)  # type: ignore[arg-type]
    return path


def unchecked(path: Path) -> ArchiveRecord:
    """Read an archive's record, in place of the check that only a complete archive passes."""
    with zipfile.ZipFile(path) as archive:
        return ArchiveRecord.from_json(archive.read(RECORD).decode(), source=str(path))
