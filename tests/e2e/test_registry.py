"""The verb `registry` with complete archives, and servers that take addresses of a registry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.registry.address import REGISTRY_VARIABLE
from torchserve_ensemble.serving.properties_file import read_properties
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions that differ in one member's weights."""
    result = []
    for version, bounds in (("1.0", (0.25, 0.5)), ("2.0", (0.25, 0.6))):
        folder = tmp_path_factory.mktemp("source")
        probes(folder, task="presence", bounds=bounds)
        spec = folder / "ensemble.yaml"
        spec.write_text(spec.read_text().replace('"1.0"', f'"{version}"'))
        result.append(build_archive(spec, folder / "store", check=False))
    return result


@pytest.fixture(scope="module")
def registry(archives: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a registry that holds both versions, and that the environment names."""
    folder = tmp_path_factory.mktemp("registry") / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REGISTRY_VARIABLE, folder.as_uri())
        for archive in archives:
            assert main(["registry", "push", str(archive)]) == 0
        assert main(["registry", "tag", "probes:1.0", "production"]) == 0
        yield folder


@pytest.mark.usefixtures("registry")
def test_every_verb(
    archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: str) -> str:
        assert main(["registry", *arguments]) == 0
        return capsys.readouterr().out

    again = printed("push", str(archives[1]), "probes:production")
    assert re.search(r"sent +0 bytes in 0 files\nskipped +[\d,]+ bytes in \d+ files", again)
    assert "probes-2.0.mar" in printed("pull", "probes:2.0", "--output", str(tmp_path))
    assert (tmp_path / "probes-2.0.mar").read_bytes() == archives[1].read_bytes()
    digests = [verify_archive(archive).digest for archive in archives]
    listed = json.loads(printed("list", "--json"))
    assert [(row["tag"], row["digest"]) for row in listed] == [
        ("1.0", digests[0]),
        ("2.0", digests[1]),
        ("production", digests[1]),
    ]
    assert "production" in printed("list", "probes")
    log = json.loads(printed("log", "probes:production", "--json"))
    assert [row["digest"] for row in log] == digests[::-1]
    assert digests[0][:20] in printed("log", "probes:production")
    assert f"is {digests[0]}" in printed("tag", f"probes@{digests[0]}", "production")
    assert "removed 0 archives and 0 bytes in 0 files" in printed("gc")


def test_the_second_version_sends_only_what_changed(
    archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = ("--registry", f"{tmp_path}/registry")
    for archive in archives:
        assert main(["registry", "push", str(archive), *option]) == 0
    first, second = re.findall(
        r"sent +([\d,.]+) (?:bytes|MB) in (\d+) files", capsys.readouterr().out
    )
    assert int(first[1]) > 100
    digests = [set(verify_archive(archive).files.values()) for archive in archives]
    # The record is sent, too.
    assert int(second[1]) == len(digests[1] - digests[0]) + 1 < 10


@pytest.mark.usefixtures("registry")
def test_serve_and_register_take_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    run_folder = ("--run-folder", str(run))
    options = [f"--set={key}={value}" for key, value in throw_away().items()]
    address = "registry://probes:1.0"
    try:
        assert main(["serve", address, "--model-store", str(store), *options, *run_folder]) == 0
        assert main(["register", "registry://probes:2.0", *run_folder]) == 0
        printed = capsys.readouterr().out
        assert f"{address} is {store}/probes-1.0.mar, sha256:" in printed
        assert sorted(path.name for path in store.iterdir()) == [
            "probes-1.0.mar",
            "probes-2.0.mar",
        ]
        missing = ["register", "registry://probes:3.0", *run_folder]
        assert main(missing) == 1
        assert "it has probes:1.0, probes:2.0" in capsys.readouterr().err
        elsewhere = ["register", address, "--management", "http://127.0.0.1:1"]
        assert main(elsewhere) == 1
        assert "registry pull probes:1.0 --output MODEL_STORE" in capsys.readouterr().err
    finally:
        assert main(["stop", *run_folder]) == 0


@pytest.mark.usefixtures("registry")
def test_kserve_layout(tmp_path: Path) -> None:
    """TorchServe starts with the exported settings, apart from ports and the place of the mount."""
    target = tmp_path / "exported"
    assert main(["registry", "export", "probes:1.0", str(target)]) == 0
    config = target / "config" / "config.properties"
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*.*")) == [
        "config/config.properties",
        "model-store/probes-1.0.mar",
    ]
    properties = read_properties(config)
    assert properties["model_store"] == "/mnt/models/model-store"
    # KServe's wrapper splits each line at its first equals sign, and reads the models' names so.
    lines = dict(line.split("=", 1) for line in config.read_text().splitlines())
    assert list(json.loads(lines["model_snapshot"])["models"]) == ["probes"]
    ports = {key: value for key, value in throw_away().items() if "port" in key or "addr" in key}
    settings = ServerSettings(target / "model-store", config=config, overrides=ports)
    with Server.start(settings, tmp_path / "run") as server:
        (version,) = server.wait_ready()
        assert (version.name, version.version) == ("probes", "1.0")
        with server.client() as client:
            assert client.predict("probes", [("a.png", image(0.9))])
