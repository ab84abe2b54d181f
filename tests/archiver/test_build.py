"""A build writes equal contents as equal bytes, with a record of all files; or else no file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.handlers.archive.record import ArchiveRecord
from torchserve_ensemble.handlers.base.archive_layout import ENTRY, RECORD
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError

HANDLERS = Path(__file__).parents[2] / "handlers"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Path of the spec of an ensemble, in a folder of its own."""
    folder = tmp_path / "ensemble"
    folder.mkdir()
    probes(folder, serving={"workers": 2, "batch_size": 4, "max_batch_delay_ms": 9})
    return folder / "ensemble.yaml"


def test_the_same_contents_give_the_same_bytes(spec: Path, tmp_path: Path) -> None:
    first = build_archive(spec, tmp_path / "a")
    (spec.parent / "probe.py").touch()
    second = build_archive(spec, tmp_path / "b")
    assert first.name == "probes-1.0.mar"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o644}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def test_an_archive_holds_all_handlers_and_a_record_of_all_files(
    spec: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(build_archive(spec, tmp_path)) as archive:
        names = set(archive.namelist())
        record = ArchiveRecord.from_json(archive.read(RECORD).decode(), source="archive")
        assert archive.read(ENTRY) == (HANDLERS / "entry.py").read_bytes()
        assert archive.read("ensemble/ensemble.yaml") == spec.read_bytes()
    member_files = [*spec.parent.glob("*.safetensors"), spec.parent / "probe.py"]
    assert len(member_files) == 4
    assert {f"ensemble/{file.name}" for file in member_files} <= names
    handlers = {f"handlers/{p.relative_to(HANDLERS).as_posix()}" for p in HANDLERS.rglob("*.py")}
    assert handlers <= names
    assert set(record.files) == names - {RECORD}


def test_members_that_do_not_load_leave_nothing_behind(spec: Path, tmp_path: Path) -> None:
    weights = spec.parent / "b.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(MemberError, match="member 'b'"):
        build_archive(spec, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert build_archive(spec, tmp_path / "store", check=False).is_file()


def test_an_output_folder_that_cannot_be_made_is_reported(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ArchiveError, match=r"store/probes-1.0.mar: cannot be written"):
        build_archive(spec, tmp_path / "store")


def test_a_write_that_fails_leaves_no_partial_file(spec: Path, tmp_path: Path) -> None:
    folder_of_that_name = tmp_path / "store" / "probes-1.0.mar"
    folder_of_that_name.mkdir(parents=True)
    with pytest.raises(ArchiveError, match=r"store/probes-1.0.mar: cannot be written"):
        build_archive(spec, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == [folder_of_that_name]
