"""Helper for the tests of compiled members: it builds an archive and extracts it."""

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
    """Build an archive and extract it beside its spec.

    Returns:
        The folder ``ensemble`` of the extracted archive, and the messages of the build.
    """
    messages: list[str] = []
    archive = build_archive(spec, spec.parent, samples=samples, report=messages.append)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(spec.parent / "archive")
    return spec.parent / "archive" / "ensemble", messages
