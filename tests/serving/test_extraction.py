"""`why_not_extracted` names the reason why TorchServe could not extract an archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from torchserve_ensemble.serving.extraction import why_not_extracted


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Path of a zip file with one compressed entry of 1 MB."""
    path = tmp_path / "a.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("large", bytes(range(256)) * 4000)
    return path


def test_no_reason_is_given_for_a_good_archive_on_a_disk_with_room(
    archive: Path, tmp_path: Path
) -> None:
    assert why_not_extracted(archive, tmp_path) == ""


def test_no_reason_is_given_for_an_archive_from_a_url(tmp_path: Path) -> None:
    assert why_not_extracted(tmp_path / "http:" / "x.mar", tmp_path) == ""


def test_a_truncated_archive_is_named(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "truncated or no archive" in why_not_extracted(archive, tmp_path)


@pytest.mark.parametrize("at", [45, 60, 500])
def test_a_damaged_archive_is_named(archive: Path, tmp_path: Path, at: int) -> None:
    content = bytearray(archive.read_bytes())
    content[at] ^= 0xFF
    archive.write_bytes(bytes(content))
    assert "a.mar is damaged" in why_not_extracted(archive, tmp_path)


def test_a_full_disk_is_named_with_the_space_that_is_needed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def almost_full(folder: Path) -> tuple[int, int, int]:
        return type("Usage", (), {"free": 200_000})()  # type: ignore[no-any-return]

    monkeypatch.setattr("shutil.disk_usage", almost_full)
    message = why_not_extracted(archive, tmp_path)
    assert "the disk is full: a.mar takes 1 MB" in message
    assert "0 MB left" in message
