"""An archive's manifest, settings and requirements are as TorchServe expects them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from probe_ensemble import probes

from torchserve_ensemble.archiver.torchserve_files import manifest, model_config, requirements
from torchserve_ensemble.handlers.base.archive_layout import ENTRY, MODEL_CONFIG, REQUIREMENTS
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec


@pytest.fixture
def spec(tmp_path: Path) -> EnsembleSpec:
    probes(tmp_path, serving={"workers": 2, "batch_size": 4, "max_batch_delay_ms": 9})
    return load_spec(tmp_path / "ensemble.yaml")


def test_the_manifest_is_torch_model_archivers(spec: EnsembleSpec, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in (ENTRY, MODEL_CONFIG, REQUIREMENTS):
        (folder / name).touch()
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", "probes", "--version", "1.0", "--handler", str(folder / ENTRY)]
    command += ["--config-file", str(folder / MODEL_CONFIG), "--archive-format", "no-archive"]
    command += ["--requirements-file", str(folder / REQUIREMENTS), "--export-path", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    ours = json.loads(manifest(spec))
    theirs = json.loads((tmp_path / "probes" / "MAR-INF" / "MANIFEST.json").read_text())
    assert ours.pop("createdOn") != theirs.pop("createdOn")
    assert ours == theirs


def test_torchserves_settings_are_written_in_full(spec: EnsembleSpec) -> None:
    assert yaml.safe_load(model_config(spec)) == {
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 4,
        "maxBatchDelay": 9,
        "responseTimeout": 60,
        "startupTimeout": 180,
    }


def test_requirements_list_the_servers_packages_with_version_ranges(
    spec: EnsembleSpec, tmp_path: Path
) -> None:
    lines = requirements(spec).splitlines()
    assert "torch<2.15,>=2.11" in lines
    names = [Requirement(line).name.lower() for line in lines]
    handlers_need = "numpy pillow pydantic pyyaml safetensors simplejpeg torch torchvision"
    assert names == handlers_need.split()
    assert all(Requirement(line).specifier for line in lines)
    (tmp_path / "a.onnx").touch()
    path = tmp_path / "ensemble.yaml"
    content = json.loads(path.read_text())
    content["members"][0] = {"name": "a", "weights": "a.onnx"}
    path.write_text(json.dumps(content))
    assert "onnxruntime" in requirements(load_spec(path))
