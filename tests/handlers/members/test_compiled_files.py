"""Tests that executables are loaded only from the folder of a checked archive."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from probe_ensemble import ask, image, probes

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ArchiveError
from torchserve_ensemble.handlers.members import compiled
from torchserve_ensemble.handlers.members.compiled_record import RECORD, CompiledRecord
from torchserve_ensemble.handlers.members.target import Target


def compiled_record(*files: str, **keys: object) -> str:
    """Make the JSON of a record: a member `a` with these files as its executable."""
    executable = {
        "engine": "openvino",
        "members": ["a"],
        "files": files,
        "max_batch_size": None,
        "precision": "float32",
        "shape": [3, 2, 2],
        "difference": 0,
    }
    target = asdict(Target.here(torch.device("cpu")))
    return json.dumps({"target": target, "executables": [executable | keys]})


def test_executables_beside_a_spec_are_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has checked files beside a spec, so `predict --local` does not load them either."""
    (tmp_path / "compiled").mkdir()
    (tmp_path / RECORD).write_text(compiled_record("compiled/a.xml"))
    (tmp_path / "compiled" / "outputs.safetensors").write_bytes(b"damaged, if it were read")
    monkeypatch.setattr(compiled, "OpenVinoModel", None)
    service = probes(tmp_path, runtime={"engine": "auto"})
    assert ask(service, image(0.9))["predictions"][0]["label"] == "bright"
    (tmp_path / "image.png").write_bytes(image(0.9))
    spec, picture = str(tmp_path / "ensemble.yaml"), str(tmp_path / "image.png")
    assert main(["predict", "--local", spec, picture, "--format", "json"]) == 0
    assert "bright" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file",
    [
        "/tmp/a.so",
        "../a.so",
        "compiled/../a.so",
        "compiled/../../a.so",
        "compiled/",
        "compiled",
        "a.so",
        "",
        "compiled//tmp/a.so",
        "compiled\\a.so",
    ],
)
def test_libraries_outside_the_folder_of_compiled_members_are_refused(file: str) -> None:
    with pytest.raises(ArchiveError, match="does not lie in compiled/"):
        CompiledRecord.from_json(compiled_record(file))
    with pytest.raises(ArchiveError, match="does not lie in compiled/"):
        CompiledRecord.from_json(compiled_record("compiled/a.so", file))


@pytest.mark.parametrize(
    "keys",
    [
        {"engine": "other"},
        {"members": []},
        {"files": []},
        {"engine": "torch"},
        {"surprise": 1},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ArchiveError, match="is damaged"):
        CompiledRecord.from_json(compiled_record("compiled/a.so", **keys))


@pytest.mark.parametrize(
    "text", ["[]", "[" * 100_000, '{"members": []}', compiled_record("a")[:-9]]
)
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(ArchiveError, match=r"compiled/compiled\.json is damaged"):
        CompiledRecord.from_json(text)
