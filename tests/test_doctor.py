"""Each known trap is found, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.serving.doctor import Finding, Level, diagnose

ROOT = Path(__file__).parent.parent
SAFE = (ROOT / "config.properties").read_text()


def about(findings: list[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.what]
    return found


def with_config(tmp_path: Path, text: str) -> list[Finding]:
    config = tmp_path / "config.properties"
    config.write_text(text)
    return diagnose(config=config)


def test_the_shipped_configuration_and_this_machine_are_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    findings = diagnose(config=ROOT / "config.properties")
    assert [f for f in findings if f.level is Level.PROBLEM] == []
    assert [f.what for f in findings if f.level is Level.WARNING and "config" in f.what] == []
    assert about(findings, "Java").level is Level.OK
    assert about(findings, "torchserve 0.12.0").level is Level.OK


@pytest.mark.parametrize(
    ("line", "words", "remedy", "level"),
    [
        ("defualt_workers_per_model=1", "did you mean 'default_workers", "ignores", Level.WARNING),
        (
            "disable_token_authorization=true\nmanagement_address=http://0.0.0.0:8081",
            "management_address=http://0.0.0.0:8081 is open",
            "bind to 127.0.0.1",
            Level.PROBLEM,
        ),
        (
            "disable_token_authorization=true\ngrpc_inference_address=0.0.0.0",
            "grpc_inference_address=0.0.0.0 is open",
            "bind to 127.0.0.1",
            Level.WARNING,
        ),
        ("max_request_size=6553500", "max_request_size is 6553500", "104857600", Level.WARNING),
        ("max_response_size=1000", "answer makes the worker reload", "104857600", Level.WARNING),
        ("install_py_dep_per_model=true", "install_py_dep", "install the packages", Level.WARNING),
    ],
)
def test_traps_in_a_configuration(
    tmp_path: Path, line: str, words: str, remedy: str, level: Level
) -> None:
    found = about(with_config(tmp_path, f"{SAFE}\n{line}\n"), words)
    assert found.level is level
    assert remedy in found.remedy


def test_a_worker_for_each_core(tmp_path: Path) -> None:
    text = SAFE.replace("default_workers_per_model=1", "")
    found = about(with_config(tmp_path, text), "default_workers_per_model is not set")
    assert found.remedy == "default_workers_per_model=1"


def test_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert about(diagnose(), "PYTHONPATH").level is Level.WARNING


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert about(diagnose(), "of disk are free").level is Level.WARNING


def test_specs(tmp_path: Path) -> None:
    probes(tmp_path)
    spec = tmp_path / "ensemble.yaml"
    assert about(diagnose(spec=spec), "probes 1.0, 3 members").level is Level.OK
    spec.write_text(spec.read_text().replace('"task":', '"taks":', 1))
    problems = [f for f in diagnose(spec=spec) if f.level is Level.PROBLEM]
    assert any("taks" in problem.what for problem in problems)
