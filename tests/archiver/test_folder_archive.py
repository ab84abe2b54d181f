"""Archives that are folders: edited, renewed, and checked like every other archive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe_ensemble import probes
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.archive_layout import MANIFEST, RECORD, SELF_TEST
from torchserve_ensemble.handlers.base.errors import ArchiveError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    probes(tmp_path)
    return build_archive(
        tmp_path / "ensemble.yaml", tmp_path / "store", check=False, as_folder=True
    )


def test_it_has_the_files_of_the_packed_archive(archive: Path, tmp_path: Path) -> None:
    packed = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store")
    assert archive.name == "probes-1.0"
    files = dict(verify_archive(packed).files)
    # Its answers would change with every edit.
    del files[SELF_TEST]
    assert verify_archive(archive).files == files
    # A second build replaces it.
    assert (
        build_archive(tmp_path / "ensemble.yaml", tmp_path / "store", check=False, as_folder=True)
        == archive
    )
    assert sorted(path.name for path in archive.parent.iterdir()) == [
        "probes-1.0",
        "probes-1.0.mar",
    ]


def test_an_edit_is_refused_until_the_record_is_renewed(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = verify_archive(archive).digest
    save_file({"bound": torch.tensor(0.9)}, archive / "ensemble" / "a.safetensors")
    spec = archive / "ensemble" / "ensemble.yaml"
    spec.write_text(spec.read_text().replace('"1.0"', '"1.1"'))
    with pytest.raises(ArchiveError, match=r"a\.safetensors was changed"):
        verify_archive(archive)
    cache = archive / "__pycache__"
    cache.mkdir()
    (cache / "ensemble_entry.cpython-311.pyc").write_bytes(b"")
    assert main(["renew", str(archive)]) == 0
    record = verify_archive(archive)
    assert record.digest in capsys.readouterr().out
    assert record.digest != before
    # The manifest repeats the version, which the check compares.
    assert '"modelVersion": "1.1"' in (archive / MANIFEST).read_text()


def test_what_no_build_writes_stays_refused(archive: Path, tmp_path: Path) -> None:
    (archive / "sitecustomize.py").write_text("")
    assert main(["renew", str(archive)]) == 1
    with pytest.raises(ArchiveError, match="no build puts a file there"):
        verify_archive(archive)
    (archive / "sitecustomize.py").unlink()
    weights = archive / "ensemble" / "a.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    assert main(["renew", str(archive)]) == 1
    with pytest.raises(ArchiveError, match="is a link"):
        verify_archive(archive)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    probes(tmp_path)
    mine = tmp_path / "store" / "probes-1.0"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ArchiveError, match="is no archive: move it away"):
        build_archive(tmp_path / "ensemble.yaml", tmp_path / "store", check=False, as_folder=True)
    assert (mine / "notes.txt").read_text() == "mine"
    assert main(["renew", str(mine)]) == 1
    assert not (mine / RECORD).exists()
