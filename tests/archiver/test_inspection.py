"""``ts-ensemble inspect`` says what an archive is, without torch and without running its code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from fresh_python import printed_by
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive, write_entries
from torchserve_ensemble.archiver.inspection import inspect_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import BOM, MODEL_CARD, RECORD


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    probes(
        folder,
        task="presence",
        description="Tells how bright a picture is.",
        policies={"default": "majority", "named": {"sharp": "any"}},
        provenance={
            "licence": "MIT",
            "training_data": "Digits",
            "metrics": {"held-out": {"accuracy": 0.9, "auc": float("nan")}},
        },
    )
    return build_archive(folder / "ensemble.yaml", folder / "store")


def contents_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_summary_fits_on_a_screen(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(archive)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in (
        *("probes 1.0 Tells how bright", "probe.py:Probe", "MIT torch", "majority; sharp = any"),
        *("trained on Digits", "held-out accuracy 0.9", "3 probes, tolerance 0.01"),
        verify_archive(archive).digest,
    ):
        assert words in text


def test_programs_get_json(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(archive), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == inspect_archive(archive)
    record = verify_archive(archive)
    assert facts["digest"] == record.digest
    assert [member["sha256"] for member in facts["members"]] == [
        record.files[f"ensemble/{name}.safetensors"] for name in "abc"
    ]
    assert facts["provenance"]["metrics"] == {"held-out": {"accuracy": 0.9}}
    assert facts["num_files"] == len(contents_of(archive))


@pytest.mark.parametrize(("option", "name"), [("--bom", BOM), ("--card", MODEL_CARD)])
def test_both_files_are_printed_as_they_are(
    archive: Path, capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    assert main(["inspect", str(archive), option]) == 0
    assert capsys.readouterr().out.encode() == contents_of(archive)[name]


def test_an_extracted_folder_is_inspected_too(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    assert inspect_archive(tmp_path) == inspect_archive(archive)


def test_an_archive_without_a_check_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path)
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store", check=False)
    assert main(["inspect", str(archive)]) == 0
    assert "none: it was built with --no-check" in " ".join(capsys.readouterr().out.split())


def test_neither_torch_nor_cyclonedx_is_imported(archive: Path) -> None:
    code = f"""
import sys
from torchserve_ensemble.cli import main
assert main(["inspect", {str(archive)!r}, "--card"]) == 0
assert main(["inspect", {str(archive)!r}, "--json"]) == 0
print([name for name in ("torch", "numpy", "cyclonedx") if name in sys.modules])
"""
    assert printed_by(code)[-1] == "[]"


@pytest.mark.parametrize("option", [[], ["--json"], ["--bom"], ["--card"]])
def test_a_damaged_archive_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    contents = contents_of(archive)
    damaged = tmp_path / "a.mar"
    write_entries(contents | {MODEL_CARD: b"# Certified"}, damaged)
    assert main(["inspect", str(damaged), *option]) == 1
    printed = capsys.readouterr()
    assert f"{MODEL_CARD} was changed" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("name", [BOM, "ensemble/selftest.json"])
def test_contents_that_no_build_writes_are_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    contents = contents_of(archive)
    record = ArchiveRecord.from_json(contents.pop(RECORD).decode(), source="archive")
    for content in (b"", b"[]", b"[" * 100_000, b"{}"):
        contents[name] = content
        files = {each: sha256_of_bytes(data) for each, data in contents.items()}
        text = ArchiveRecord(files, record.built_with).to_json()
        write_entries(contents | {RECORD: text.encode()}, tmp_path / "a.mar")
        assert main(["inspect", str(tmp_path / "a.mar")]) == 1
        assert "a file that describes the archive is damaged" in capsys.readouterr().err


def test_a_missing_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "a.mar")]) == 1
    assert "no such archive; build it with `ts-ensemble build`" in capsys.readouterr().err
