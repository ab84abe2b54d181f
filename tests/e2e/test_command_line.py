"""Verbs with a real server: versions of a model, free ports, names of samples, and messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with two versions of the model probes."""
    folder, store = tmp_path_factory.mktemp("spec"), tmp_path_factory.mktemp("store")
    for version in ("1.0", "2.0"):
        probes(folder, version=version)
        build_archive(folder / "ensemble.yaml", store)
    return store


@pytest.fixture(scope="module")
def run_folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The options that name a server of both versions, which `serve` started on free ports."""
    folder = tmp_path_factory.mktemp("run")
    option = ["--run-folder", str(folder)]
    archives = ["probes-1.0.mar", "probes-2.0.mar"]
    command = ["serve", *archives, "--free-ports", "--model-store", str(store), *option]
    try:
        assert main(command) == 0
        yield option
    finally:
        assert main(["stop", *option]) == 0


def test_serve_shows_both_versions_and_the_default_one(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    option = ["--run-folder", str(tmp_path / "run")]
    archives = ["probes-1.0.mar", "probes-2.0.mar"]
    command = ["serve", *archives, "--free-ports", "--model-store", str(store), *option]
    try:
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        (first,) = (line for line in lines if "probes-1.0.mar" in line)
        (second,) = (line for line in lines if "probes-2.0.mar" in line)
        assert "yes" in first
        assert "yes" not in second
        assert "1 READY" in first
        assert "1 READY" in second
        server = Server.attach(tmp_path / "run")
        assert server is not None
        assert not server.inference_address.endswith(":8080")
        assert any(server.inference_address in line for line in lines)
        for version, is_default in (("1.0", True), ("2.0", False)):
            scale = ["scale", "probes", "1", "--model-version", version, *option]
            assert main(scale) == 0
            (row,) = (each for each in capsys.readouterr().out.splitlines() if version in each)
            assert ("yes" in row) is is_default
    finally:
        assert main(["stop", *option]) == 0


def test_a_setting_wins_over_free_ports(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--free-ports", "--model-store", str(store), "--set", "inference_address=x"]
    assert main([*command, "--run-folder", str(tmp_path / "run")]) == 1
    assert "x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["unregister", "probes", "3.0"],
            "probes has no version 3.0; its versions: 1.0, 2.0",
        ),
        (["set-default", "probes", "3.0"], "probes has no version 3.0; its versions: 1.0, 2.0"),
        (
            ["scale", "probes", "1", "--model-version", "3.0"],
            "probes has no version 3.0; its versions: 1.0, 2.0",
        ),
        (
            ["describe", "prob"],
            "no model 'prob' is registered; did you mean 'probes'?; registered: probes",
        ),
        (["versions", "nothing"], "no model 'nothing' is registered; registered: probes"),
        (["scale", "nothing", "1"], "no model 'nothing' is registered; registered: probes"),
        (["unregister", "nothing"], "no model 'nothing' is registered; registered: probes"),
        (
            ["register", "probes-3.0.mar"],
            "has no archive probes-3.0.mar; did you mean 'probes-",
        ),
        (["register", "nope.mar"], "it has probes-1.0.mar, probes-2.0.mar"),
        (["register", "probes-2.0.mar"], "raise the version in the spec, or unregister it"),
        (["unregister", "probes", "1.0"], "make another version the default first"),
    ],
    ids=" ".join,
)
def test_messages(
    run_folder: list[str],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert main([*arguments, *run_folder]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_predictions_of_what_is_not_there(
    run_folder: list[str], transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(image(0.9))
    common = [str(tmp_path / "a.png"), *run_folder, "--transport", transport]
    assert main(["predict", "prob", *common]) == 1
    assert "no model 'prob' is registered; did you mean 'probes'?" in capsys.readouterr().err
    assert main(["predict", "probes", *common, "--model-version", "3.0"]) == 1
    assert "probes has no version 3.0; its versions: 1.0, 2.0" in capsys.readouterr().err


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_each_prediction_of_a_folder_has_the_path_of_its_file(
    run_folder: list[str],
    transport: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also beside an archive, whose entries are named by their paths within it."""
    folder = tmp_path / "images"
    (folder / "night").mkdir(parents=True)
    for name in ("1.png", "2.png", "night/1.png"):
        (folder / name).write_bytes(image(0.9))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for name in ("x/1.png", "2.png"):
            archive.writestr(name, image(0.1))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    command = ["predict", "probes", "images", *run_folder, "--transport", transport]
    assert main([*command, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["sample"], row["label"]) for row in rows] == [
        ("images/1.png", "bright"),
        ("images/2.png", "bright"),
        ("images/more.zip/x/1.png", "dark"),
        ("images/more.zip/2.png", "dark"),
        ("images/night/1.png", "bright"),
    ]


def test_describe_is_a_summary_and_json_has_everything(
    run_folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["describe", "probes", *run_folder]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 24
    assert main(["describe", "probes", "--json", *run_folder]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["model"]["name"] == "probes"
    assert description["policies"]["available"][0]["parameters"]


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["versions", "probes"], ["describe", "probes"], ["token", "inference"]],
    ids=" ".join,
)
def test_a_closed_pipe_is_no_traceback(run_folder: list[str], arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "torchserve_ensemble", *arguments, *run_folder],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    finally:
        os.close(writer)
    assert (result.stderr, result.returncode) == (b"", 0)


def test_a_server_without_model_control_says_how_to_start_one_with_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(store / "probes-1.0.mar", tmp_path)
    overrides = throw_away() | {"enable_model_api": "false"}
    settings = ServerSettings(tmp_path, ("probes-1.0.mar",), overrides=overrides)
    with Server.start(settings, tmp_path / "run") as server:
        server.wait_ready()
        shutil.copy(store / "probes-2.0.mar", tmp_path)
        run_folder = ["--run-folder", str(server.run_folder)]
        management = ["--management", server.management_address]
        for arguments in (
            ["register", "probes-2.0.mar", *run_folder],
            ["register", "probes-2.0.mar", *management],
            ["unregister", "probes", *run_folder],
        ):
            assert main(arguments) == 1
            error = capsys.readouterr().err
            assert "ts-ensemble serve --set enable_model_api=true" in error, error
