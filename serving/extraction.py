"""Finds out why TorchServe could not extract an archive; TorchServe does not report the reason."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

_BYTES_PER_MB = 1e6


def why_not_extracted(archive: Path, folder: Path) -> str:
    """Look for the reason in the archive and on the disk.

    Args:
        archive: a file on this machine; for an archive from a URL there is no such file, and no
            reason is found.
        folder: the folder in which TorchServe extracts archives.

    Returns:
        The reason and a remedy, as a sentence; empty if no reason was found.
    """
    if not archive.is_file():
        return ""
    try:
        with zipfile.ZipFile(archive) as opened:
            damaged_entry = opened.testzip()
            needed_bytes = sum(entry.file_size for entry in opened.infolist())
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"{archive} is truncated or no archive ({error}): copy it again, or build it again"
    except Exception as error:
        # Decompressing an entry with wrong bytes raises zlib.error and others.
        return f"{archive} is damaged ({error}): copy it again, or build it again"
    if damaged_entry is not None:
        return f"{archive} is damaged in {damaged_entry}: copy it again, or build it again"
    free_bytes = shutil.disk_usage(folder).free if folder.is_dir() else needed_bytes
    if free_bytes < needed_bytes:
        needed, free = needed_bytes / _BYTES_PER_MB, free_bytes / _BYTES_PER_MB
        return (
            f"the disk is full: {archive.name} takes {needed:,.0f} MB in {folder}, which has "
            f"{free:,.0f} MB left; the part that was extracted is removed when the server stops"
        )
    return ""
