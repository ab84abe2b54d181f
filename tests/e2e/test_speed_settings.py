"""Tests the score cache, OpenVINO and `profile` on a real TorchServe."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import requests
import torch
from member_files import net, write_code, write_ensemble
from PIL import Image
from probe_ensemble import image, probes
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.serving.run_folder import server_log
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


def post(server: Server, model: str, files: list[bytes]) -> dict[str, object]:
    answer = requests.post(
        f"{server.inference_address}/predictions/{model}",
        files=[("file", ("image.png", file, "image/png")) for file in files],
        timeout=60,
    )
    answer.raise_for_status()
    content: dict[str, object] = answer.json()
    return content


def counter(server: Server, overrides: dict[str, str], name: str) -> float:
    """Read a counter from TorchServe's metrics in Prometheus' format."""
    text = requests.get(f"{overrides['metrics_address']}/metrics", timeout=30).text
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} ([\d.e+]+)", text, re.M))


def test_repeats_come_from_the_score_cache_and_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "spec"
    folder.mkdir()
    probes(folder, runtime={"score_cache_mb": 1})
    archive = build_archive(folder / "ensemble.yaml", tmp_path)
    overrides = throw_away() | {
        "metrics_mode": "prometheus",
        "model_metrics_auto_detect": "true",
    }
    settings = ServerSettings(tmp_path, (archive.name,), overrides=overrides)
    with Server.start(settings, tmp_path / "run") as server:
        server.wait_ready()
        first = post(server, "probes", [image(0.1), image(0.9)])
        assert post(server, "probes", [image(0.1), image(0.9)]) == first
        described = requests.get(
            f"{server.management_address}/models/probes?customized=true", timeout=30
        ).json()
        cache = described[0]["customizedMetadata"]["score_cache"]
        assert (cache["hits"], cache["misses"], cache["samples"]) == (2, 2, 2)
        # The worker reports what it has counted at most a second later.
        end = time.monotonic() + 20
        while counter(server, overrides, "ensemble_score_cache_misses_total") < 2:
            assert time.monotonic() < end
        assert counter(server, overrides, "ensemble_score_cache_misses_total") == 2
        assert counter(server, overrides, "ensemble_score_cache_hits_total") == 2


def test_members_are_served_with_openvino(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    one = {"name": "one", "architecture": "net.py:Net", "weights": "w.safetensors"}
    write_ensemble(tmp_path, [one], runtime={"engine": "openvino"})
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path)
    pixels = example_images(1)[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    settings = ServerSettings(tmp_path, (archive.name,), overrides=throw_away())
    with Server.start(settings, tmp_path / "run") as server:
        server.wait_ready()
        answer = post(server, "trees", [(tmp_path / "a.png").read_bytes()])
        log = server_log(tmp_path / "run").read_text()
    assert "one: runs with openvino in float32" in log
    small = torch.nn.functional.interpolate(
        pixels.unsqueeze(0).float(), (4, 4), mode="bilinear", antialias=True
    )
    with torch.inference_mode():
        expected = net()(small / 255).softmax(dim=1).max()
    (prediction,) = answer["predictions"]  # type: ignore[misc]
    assert prediction["score"] == pytest.approx(float(expected), abs=1e-2)


@pytest.mark.long
def test_profile_measures_chooses_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, images, report = tmp_path / "ensemble.yaml", tmp_path / "images", tmp_path / "report"
    probes(tmp_path)
    images.mkdir()
    for level in (0.1, 0.9):
        (images / f"{level}.png").write_bytes(image(level))
    arguments = ["profile", str(spec), "--images", str(images), "--report", str(report)]
    arguments += ["--workers", "1", "--batch-sizes", "1,16", "--delays-ms", "3", "--clients", "2"]
    arguments += ["--seconds", "0.5"]
    assert main([*arguments, "--latency-ms", "0.001"]) == 3
    assert (
        "no settings have a p99 latency within 0.001 ms; the lowest is" in capsys.readouterr().out
    )
    assert main([*arguments, "--latency-ms", "60000", "--write"]) == 0
    out = capsys.readouterr().out
    content = json.loads((report / "profile.json").read_text())
    assert [each["choice"]["batch_size"] for each in content["tried"]] == [1, 16]
    fastest = max(content["tried"], key=lambda each: each["metrics"]["images_per_second"])
    assert content["chosen"] == fastest
    assert (
        f"p99 latency within 60000 ms: 1 worker(s), batch {fastest['choice']['batch_size']}" in out
    )
    assert load_spec(spec).serving.batch_size == fastest["choice"]["batch_size"]
    assert "<svg" in (report / "profile.svg").read_text()
