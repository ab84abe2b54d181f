"""Archives with the executables of another engine than torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torchserve_ensemble.archiver.build import build_archive


def build_and_extract(spec: Path, samples: Path | None = None) -> tuple[Path, list[str]]:
    """The folder of the archive's ensemble, and what the build reported."""
    reports: list[str] = []
    archive = build_archive(spec, spec.parent, samples=samples, report=reports.append)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(spec.parent / "archive")
    return spec.parent / "archive" / "ensemble", reports
