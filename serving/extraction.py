"""Why TorchServe could not extract an archive, which it does not say itself."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

_MB = 1e6


def why_not_extracted(archive: Path, folder: Path) -> str:
    """The reason and a remedy; empty if neither the archive nor the disk shows one.

    Args:
        archive: a file of this machine; nothing is known of one that was loaded from an URL.
        folder: in which TorchServe extracts.
    """
    if not archive.is_file():
        return ""
    try:
        with zipfile.ZipFile(archive) as opened:
            damaged = opened.testzip()
            needed = sum(entry.file_size for entry in opened.infolist())
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"{archive} is truncated or no archive ({error}): copy it again, or build it again"
    except Exception as error:
        # zlib and others, of entries whose bytes are wrong.
        return f"{archive} is damaged ({error}): copy it again, or build it again"
    if damaged is not None:
        return f"{archive} is damaged in {damaged}: copy it again, or build it again"
    free = shutil.disk_usage(folder).free if folder.is_dir() else needed
    if free < needed:
        return (
            f"the disk is full: {archive.name} takes {needed / _MB:,.0f} MB in {folder}, which has "
            f"{free / _MB:,.0f} MB left; what was extracted of it is removed when the server stops"
        )
    return ""
