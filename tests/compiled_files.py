"""Archives with compiled members."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from torchserve_ensemble.archiver.build import build_archive

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="compiling needs a C++ compiler (apt install g++)"
)


def build_and_extract(spec: Path, samples: Path | None = None) -> tuple[Path, list[str]]:
    """The folder of the archive's ensemble, and what the build said."""
    said: list[str] = []
    archive = build_archive(spec, spec.parent, samples=samples, report=said.append)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(spec.parent / "archive")
    return spec.parent / "archive" / "ensemble", said
