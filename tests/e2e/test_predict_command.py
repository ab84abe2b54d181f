"""Tests ``ts-ensemble predict`` with a server and without one."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.server import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, level in ((1, 0.1), (2, 0.9), (10, 0.6)):
        (folder / f"frame{number}.png").write_bytes(image(level))
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["predict", *arguments]) == 0
    return capsys.readouterr().out


def labels(out: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in out.splitlines()]
    return [(Path(row["sample"]).name, row["label"]) for row in rows]


EXPECTED = [("frame1.png", "dark"), ("frame2.png", "bright"), ("frame10.png", "bright")]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize(
    "what", ["{}", "{}/*.png", "{0}/frame1.png {0}/frame2.png {0}/frame10.png"]
)
def test_files_folders_and_patterns(
    probe_server: Server,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
    transport: str,
) -> None:
    run_folder = ["--run-folder", str(probe_server.run_folder), "--transport", transport]
    names = what.format(images).split()
    out = predict(capsys, "probes", *names, *run_folder, "--format", "lines", "--per-request", "2")
    assert labels(out) == EXPECTED


def test_local_predictions_are_the_same(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence", policies={"default": "majority"})
    spec = str(tmp_path / "ensemble.yaml")
    out = predict(capsys, "--local", spec, str(images), "--format", "lines", "--per-request", "2")
    assert labels(out) == EXPECTED


def test_csv_json_and_table(
    probe_server: Server, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["probes", str(images), "--run-folder", str(probe_server.run_folder)]
    rows = list(csv.DictReader(io.StringIO(predict(capsys, *common, "--format", "csv"))))
    assert [row["label"] for row in rows] == ["dark", "bright", "bright"]
    assert [row["members.c.label"] for row in rows] == ["dark", "bright", "dark"]
    content = json.loads(predict(capsys, *common, "--format", "json", "--policy", "all"))
    assert [row["label"] for row in content] == ["dark", "bright", "dark"]
    table = predict(capsys, *common, "--option", "members=a,b")
    assert "bright" in table
    assert "combined" in table


def test_standard_input(probe_server: Server) -> None:
    command = [sys.executable, "-m", "torchserve_ensemble", "predict", "probes", "-"]
    command += ["--run-folder", str(probe_server.run_folder), "--format", "lines"]
    result = subprocess.run(command, input=image(0.9), capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["label"] == "bright"


def test_mistakes_are_one_line_and_status_1(
    probe_server: Server, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = ["--run-folder", str(probe_server.run_folder)]
    for arguments, words in (
        (["probes", "nothing.png"], "no such file, folder or match"),
        (["probes", str(images / "notes.txt")], "sample 0"),
        (["probes", str(images), "--policy", "anny"], "did you mean 'any'"),
        (["nothing", str(images)], "no model 'nothing' is registered; registered: probes"),
        (["probes", str(images), "--option", "fields"], "write NAME=VALUE"),
    ):
        assert main(["predict", *arguments, *run_folder]) == 1
        printed = capsys.readouterr().err
        assert words in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("per_request", ["1", "2", "32"])
def test_unreadable_files_are_skipped_however_they_share_requests(
    probe_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], per_request: str
) -> None:
    for name in ("1", "2", "3", "5"):
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    (tmp_path / "4.png").write_bytes(image(0.9))
    arguments = ["probes", str(tmp_path), "--run-folder", str(probe_server.run_folder)]
    arguments += ["--on-error", "skip", "--per-request", per_request, "--format", "csv"]
    rows = list(csv.DictReader(io.StringIO(predict(capsys, *arguments))))
    paths = [str(tmp_path / f"{number}.png") for number in range(1, 6)]
    assert [row["sample"] for row in rows] == paths
    assert [bool(row["error.message"]) for row in rows] == [True, True, True, False, True]
    assert rows[3]["label"] == "bright"


def test_skipping_unreadable_files_hides_no_other_mistake(
    probe_server: Server, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = ["--run-folder", str(probe_server.run_folder)]
    arguments = ["probes", str(images), "--on-error", "skip", "--policy", "anny"]
    assert main(["predict", *arguments, *run_folder]) == 1
    assert "did you mean 'any'" in capsys.readouterr().err
