"""An archive of the probe ensemble, whole and as its files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from archive_refusals import Contents
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the archive."""
    folder = tmp_path_factory.mktemp("probes")
    (folder / "notes.txt").write_text("notes")
    probes(folder, extra_files=["notes.txt"])
    return build_archive(folder / "ensemble.yaml", folder / "store")


@pytest.fixture(scope="session")
def contents(archive: Path) -> Contents:
    """Path of each file in the archive -> its contents."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}
