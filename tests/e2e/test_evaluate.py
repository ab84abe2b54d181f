"""Tests that `evaluate` measures a served ensemble with the same metrics as `tune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("target", ["recall>=0.9", "maximise f1"])
def test_tune_build_serve_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    probes(tmp_path, task="presence", bounds=(0.3, 0.5, 0.8))
    spec, data = tmp_path / "ensemble.yaml", tmp_path / "data"
    for index in range(100):
        level = index / 99
        wrong = 0.35 < level < 0.65 and index % 3 == 0
        label = "bright" if (level > 0.5) != wrong else "dark"
        (data / label).mkdir(parents=True, exist_ok=True)
        (data / label / f"{index}.png").write_bytes(image(level))
    report = tmp_path / "report"
    command = ["tune", str(spec), "--data", str(data), "--target", target]
    assert main([*command, "--report", str(report)]) == 0
    content = json.loads((report / "report.json").read_text())
    (expected,) = (c for c in content["candidates"] if c["policy"] == content["chosen"])
    archive = build_archive(spec, tmp_path / "store")
    settings = ServerSettings(tmp_path / "store", (archive.name,), overrides=throw_away())
    with Server.start(settings, tmp_path / "run") as server:
        server.wait_ready()
        capsys.readouterr()
        command = ["evaluate", "probes", "--spec", str(spec), "--data", str(data), "--json"]
        assert main([*command, "--policy", "tuned", "--run-folder", str(tmp_path / "run")]) == 0
        served = json.loads(capsys.readouterr().out)["combined"]

        (tmp_path / "own.py").write_text("def half(path):\n    return [0.5]\n")
        command = [
            "check",
            str(spec),
            "--reference",
            f"{tmp_path}/own.py:half",
            "--data",
            str(data),
        ]
        served_command = [*command, "--served", "probes", "--run-folder", str(tmp_path / "run")]
        assert main(served_command) == 1
        of_server = capsys.readouterr().out.splitlines()[0]
        assert main(command) == 1
        assert capsys.readouterr().out.splitlines()[0] == of_server
    for name, value in expected["in_sample"].items():
        # Areas depend on the scores, whose last digits differ between batch sizes.
        tolerance = 1e-6 if name in ("auroc", "average_precision") else 0
        assert served[name] == pytest.approx(value, abs=tolerance, rel=0), name
