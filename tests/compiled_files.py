"""Archives with the executables of another engine than torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torchserve_ensemble.archiver.build import build_archive


def build_and_extract(spec: Path, samples: Path | None = None) -> tuple[Path, list[str]]:
    """Build an archive and extract it beside its spec.

    Returns:
        The folder ``ensemble`` of the extracted archive, and the messages of the build.
    """
    messages: list[str] = []
    archive = build_archive(spec, spec.parent, samples=samples, report=messages.append)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(spec.parent / "archive")
    return spec.parent / "archive" / "ensemble", messages
