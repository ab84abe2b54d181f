"""Copies an archive with other settings, without building it again."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import yaml

from ..handlers.archive.record import ArchiveRecord, sha256_of_bytes
from ..handlers.base.archive_layout import MODEL_CONFIG, RECORD, SPEC
from ..handlers.spec import EnsembleSpec, Serving
from .packing import write_entries
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
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    content = yaml.safe_load(contents[SPEC])
    content["serving"] = (content.get("serving") or {}) | {
        "workers": serving.workers,
        "batch_size": serving.batch_size,
        "max_batch_delay_ms": serving.max_batch_delay_ms,
    }
    runtime = (content.get("runtime") or {}) | {"threads": threads}
    content["runtime"] = {key: value for key, value in runtime.items() if value is not None}
    contents[SPEC] = yaml.safe_dump(content, sort_keys=False).encode()
    contents[MODEL_CONFIG] = model_config(replace(spec, serving=serving)).encode()
    record = ArchiveRecord.from_json(contents[RECORD].decode(), source=str(archive))
    changed = {name: sha256_of_bytes(contents[name]) for name in (SPEC, MODEL_CONFIG)}
    contents[RECORD] = replace(record, files={**record.files, **changed}).to_json().encode()
    write_entries(contents, target)
