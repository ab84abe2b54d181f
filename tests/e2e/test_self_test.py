"""A worker that computes something else than the build does not serve."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from probe_ensemble import probes
from safetensors.torch import save

from torchserve_ensemble.archiver.build import build_archive, write_entries
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import RECORD
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of probes 1.0 and, with other weights but the old self-test, probes 2.0."""
    folder, store = tmp_path_factory.mktemp("probes"), tmp_path_factory.mktemp("store")
    for version in ("1.0", "2.0"):
        probes(folder, task="presence", policies={"default": "majority"}, version=version)
        build_archive(folder / "ensemble.yaml", store)
    with zipfile.ZipFile(store / "probes-2.0.mar") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = ArchiveRecord.from_json(contents.pop(RECORD).decode(), source="archive")
    contents["ensemble/b.safetensors"] = save({"bound": torch.tensor(0.6)})
    files = {name: sha256_of_bytes(content) for name, content in contents.items()}
    contents[RECORD] = ArchiveRecord(files, record.built_with).to_json().encode()
    write_entries(contents, store / "probes-2.0.mar")
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ServerSettings(store, ("probes-1.0.mar",), overrides=throw_away())
    with Server.start(settings, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready()
        yield server


def test_other_answers_than_at_build_keep_a_worker_from_serving(
    server: Server, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = ["--run-folder", str(server.run_folder)]
    assert main(["verify", str(store / "probes-2.0.mar")]) == 0, "nothing is hidden in it"
    assert main(["register", "probes-2.0.mar", *run_folder]) == 1
    message = capsys.readouterr().err
    assert "the self-test failed: member 'b' differs by" in message
    assert "and the tolerance is 0.01" in message
    assert main(["selftest", "probes", *run_folder]) == 0, "the other version still serves"


def test_the_self_test_is_repeated_over_rest(
    server: Server, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = ["--run-folder", str(server.run_folder)]
    assert main(["selftest", "probes", *run_folder]) == 0
    printed = capsys.readouterr().out
    assert "probes: 3 probes are answered as at build" in printed
    assert "sha256:" in printed
    archive = str(store / "probes-1.0.mar")
    address = ["--address", server.inference_address]
    assert main(["selftest", "probes", "--archive", archive, *address, "--json"]) == 0
    passed = json.loads(capsys.readouterr().out)
    assert passed["num_probes"] == 3
    assert passed["largest_difference"] < 1e-6


def test_what_a_server_answers_otherwise_is_named(
    server: Server, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence", bounds=(0.25, 0.5, 0.6), policies={"default": "majority"})
    archive = str(build_archive(tmp_path / "ensemble.yaml", tmp_path / "other"))
    address = ["--address", server.inference_address]
    assert main(["selftest", "probes", "--archive", archive, *address]) == 1
    assert "the self-test failed: member 'c' differs by" in capsys.readouterr().err
    assert main(["selftest", "probes", *address]) == 1
    assert "name the archive with --archive" in capsys.readouterr().err
    unchecked = build_archive(tmp_path / "ensemble.yaml", tmp_path / "unchecked", check=False)
    assert main(["selftest", "probes", "--archive", str(unchecked), *address]) == 1
    assert "has no self-test: it was built with --no-check" in capsys.readouterr().err
    assert main(["selftest", "nonsense", "--run-folder", str(server.run_folder)]) == 1
