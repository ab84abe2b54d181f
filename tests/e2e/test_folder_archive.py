"""An archive that is a folder, on a real TorchServe: an edit needs no rebuild."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe_ensemble import image, probes
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


def test_an_edit_is_served_by_the_next_worker(tmp_path: Path) -> None:
    probes(tmp_path, bounds=(0.25,))
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store", as_folder=True)
    settings = ServerSettings(archive.parent, (archive.name,), overrides=throw_away())
    run_folder = ("--run-folder", str(tmp_path / "run"))
    with Server.start(settings, tmp_path / "run") as server, server.client() as client:
        server.wait_ready()

        def label() -> str:
            (result,) = client.predict("probes", [("a.png", image(0.5))])["predictions"]
            return str(result["label"])

        assert label() == "bright"
        save_file({"bound": torch.tensor(0.9)}, archive / "ensemble" / "a.safetensors")
        assert main(["renew", str(archive)]) == 0
        for workers in ("0", "1"):
            assert main(["scale", "probes", workers, *run_folder]) == 0
        assert label() == "dark"
