"""Archives that are folders, for development: TorchServe links such a folder and extracts nothing.

A worker checks the folder against its record like every other archive. After an edit the record is
renewed, which takes the time to read the files, and nothing is packed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord, sha256_of_file
from ..handlers.base.archive_layout import (
    COMPILED,
    MANIFEST,
    MODEL_CONFIG,
    RECORD,
    REQUIREMENTS,
    SPEC,
)
from ..handlers.base.errors import ArchiveError
from ..handlers.spec import load_spec
from .packing import Stream, as_stream
from .torchserve_files import manifest, model_config, requirements

_BYTE_CODE = "__pycache__"


def write_folder(
    contents: Mapping[str, bytes | Path | Stream],
    target: Path,
    *,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the files of an archive into a folder.

    They are written beside the target and then moved, so that nobody can read half of an archive.

    Args:
        contents: path of each file in the archive -> its contents, or the file that holds them.
        target: the folder; an older archive there is replaced.
        on_bytes: called after each block, with the number of bytes in it.

    Raises:
        ArchiveError: the target is there, and is no archive.
    """
    if target.is_symlink() or (target.exists() and not (target / RECORD).is_file()):
        raise ArchiveError(f"{target} is there already, and is no archive: move it away")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, content in contents.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for block in as_stream(content).blocks():
                    file.write(block)
                    on_bytes(len(block))
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def renew_record(folder: Path) -> ArchiveRecord:
    """Write the record of an archive that is a folder anew, after files in it were edited.

    Manifest and settings for TorchServe are written anew, too, since they repeat keys of the spec.

    Args:
        folder: the archive.

    Returns:
        The new record.

    Raises:
        ArchiveError: it is no archive, or holds a file that no build puts there.
        SpecError: its spec has a mistake.
    """
    try:
        text = (folder / RECORD).read_text(encoding="utf-8")
        old = ArchiveRecord.from_json(text, source=str(folder))
        spec = load_spec(folder / SPEC)
        # Python put it there when TorchServe imported the entry.
        shutil.rmtree(folder / _BYTE_CODE, ignore_errors=True)
        files = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        compiled = [name for name in files if name.startswith(f"{COMPILED}/")]
        (folder / MANIFEST).write_text(manifest(spec))
        (folder / MODEL_CONFIG).write_text(model_config(spec))
        (folder / REQUIREMENTS).write_text(requirements(spec, compiled))
        digests = {name: sha256_of_file(folder / name) for name in files if name != RECORD}
        record = ArchiveRecord(digests, old.built_with)
        (folder / RECORD).write_text(record.to_json())
    except OSError as error:
        raise ArchiveError(
            f"{folder}: its record cannot be renewed ({error}); make the folder with `ts-ensemble "
            "build --folder`"
        ) from error
    return verify_archive(folder)
