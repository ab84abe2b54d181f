"""Tests that `evaluate` measures a served ensemble with the same metrics as `tune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away
from torchserve_ensemble.tuning.labelled_data import read_labelled
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.tune import split

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("target", ["recall>=0.9", "maximise f1"])
@pytest.mark.long
def test_tune_build_serve_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """What `tune` measures on the held-out images, `evaluate` measures on a server with them."""
    probes(tmp_path, task="presence", bounds=(0.3, 0.5, 0.8))
    spec, data = tmp_path / "ensemble.yaml", tmp_path / "data"
    for index in range(200):
        level = index / 199
        wrong = 0.45 < level < 0.5 and index % 3 == 0
        label = "bright" if (level > 0.5) != wrong else "dark"
        (data / label).mkdir(parents=True, exist_ok=True)
        (data / label / f"{index}.png").write_bytes(image(level))
    loaded = load_spec(spec)
    labelled = read_labelled(data, loaded)
    held_out = split(loaded, labelled, parse_target(target, loaded.task)).held_out
    for row in held_out.tolist():
        path = Path(labelled.paths[row])
        copy = tmp_path / "held-out" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    report = tmp_path / "report"
    command = ["tune", str(spec), "--data", str(data), "--target", target]
    assert main([*command, "--report", str(report)]) == 0
    expected = json.loads((report / "report.json").read_text())["held_out"]["metrics"]
    data = tmp_path / "held-out"
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
    for name, value in expected.items():
        # Areas depend on the scores, whose last digits differ between batch sizes.
        tolerance = 1e-6 if name in ("auroc", "average_precision") else 0
        assert served[name] == pytest.approx(value, abs=tolerance, rel=0), name
