"""Copies an archive with other settings, without building it again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..handlers.archive.mar_file import read_file
from ..handlers.archive.record import ArchiveRecord, sha256_of_bytes
from ..handlers.base.archive_layout import MANIFEST, MODEL_CONFIG, RECORD, SIGNATURE, SPEC
from ..handlers.spec import EnsembleSpec, Serving, parse_spec
from .packing import Stream, entries_of, write_entries
from .torchserve_files import model_config


def vary_archive(
    archive: Path, target: Path, spec: EnsembleSpec, serving: Serving, threads: int | None
) -> None:
    """Copy an archive with other settings for TorchServe and another number of threads.

    Args:
        archive: path of an archive that was built from `spec`.
        target: path of the copy.
        spec: the spec that the archive holds.
        serving: the copy's settings for TorchServe: workers, batch size and delay.
        threads: the copy's ``runtime.threads``. None leaves it out, which means the number of
            cores divided by the number of workers.
    """
    changes = {
        "serving": {
            "workers": serving.workers,
            "batch_size": serving.batch_size,
            "max_batch_delay_ms": serving.max_batch_delay_ms,
        },
        "runtime": {"threads": threads},
    }
    write_variant(archive, changed_files(archive, changes), target)


def changed_files(archive: Path, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files in which an archive would differ if its spec said something else.

    Args:
        archive: path of an archive that was verified.
        changes: key of the spec -> its new value. A mapping is merged into the one that the spec
            has, where None removes a key.

    Returns:
        Path of each file that differs, the record among them -> its contents.
    """
    content = yaml.safe_load(read_file(archive, SPEC))
    for key, value in changes.items():
        if isinstance(value, Mapping):
            merged = (content.get(key) or {}) | dict(value)
            content[key] = {each: merged[each] for each in merged if merged[each] is not None}
        else:
            content[key] = value
    text = yaml.safe_dump(content, sort_keys=False)
    spec = parse_spec(text, source=f"{archive}, {SPEC}")
    manifest = json.loads(read_file(archive, MANIFEST))
    manifest["model"]["modelVersion"] = spec.version
    files = {
        SPEC: text.encode(),
        MODEL_CONFIG: model_config(spec).encode(),
        MANIFEST: (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(),
    }
    record = ArchiveRecord.from_json(read_file(archive, RECORD).decode(), source=str(archive))
    changed = {name: sha256_of_bytes(contents) for name, contents in files.items()}
    files[RECORD] = replace(record, files={**record.files, **changed}).to_json().encode()
    return files


def write_variant(archive: Path, changed: Mapping[str, bytes], target: Path) -> None:
    """Copy an archive with some of its files replaced.

    A signature is not copied, since it is that of the other record.

    Args:
        archive: path of a ``.mar`` file.
        changed: path of each file to replace -> its contents, as `changed_files` returns them.
        target: path of the copy, which appears when it is complete.
    """
    with zipfile.ZipFile(archive) as opened:
        contents: dict[str, bytes | Path | Stream] = {**entries_of(opened), **changed}
        contents.pop(SIGNATURE, None)
        write_entries(contents, target)
