"""With labelled images the build keeps lower precision only if decisions provably stay right."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import beta
from torch import Tensor
from wide_member import prefer_int8, rows_of, write_wide

from torchserve_ensemble.archiver import candidates
from torchserve_ensemble.archiver.compilation import compiled_members
from torchserve_ensemble.archiver.metric_proof import MetricLoss, MetricProof
from torchserve_ensemble.archiver.quantization import quantized
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.engine.member_inputs import MemberInputs
from torchserve_ensemble.handlers.inputs.preprocessing import preprocessors_of
from torchserve_ensemble.handlers.members.loading import LoadedMember, load_member
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.tuning.labelled_data import read_labelled
from torchserve_ensemble.tuning.metric_loss import LabelledProof, split

NUM_IMAGES = 750
"""The smallest number whose held-out images can prove the default ``max_metric_loss``."""

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with a member that tells red, green and blue images, and ``data.csv`` with images."""
    folder = tmp_path_factory.mktemp("labelled")
    spec = load_spec(write_wide(folder, precision="auto"))
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    paths, kinds = [], np.arange(NUM_IMAGES) % 3
    for index, kind in enumerate(kinds):
        colors = generator.integers(0, 100, (3, 3, 3), dtype=np.uint8)
        colors[..., kind] += 100
        paths.append(folder / "images" / f"{index:03}.png")
        Image.fromarray(colors).resize((16, 16), Image.Resampling.BICUBIC).save(paths[-1])
    write_csv(folder / "data.csv", [(p, spec.labels[k]) for p, k in zip(paths, kinds, strict=True)])
    fit_last_layer(folder, paths, torch.from_numpy(kinds))
    return folder


@torch.no_grad()
def fit_last_layer(folder: Path, paths: Sequence[Path], kinds: Tensor) -> None:
    """Fit the member's last layer by ridge regression, so that its decisions are not near ties."""
    module = member_of(folder).module
    assert module is not None
    layers = torch.nn.Sequential(*module.children())
    features = layers[:-1](batch_of(folder, paths))
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    targets = 10 * torch.nn.functional.one_hot(kinds).double()
    gram = features.T @ features
    ridge = 0.1 * gram.diagonal().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram + ridge, features.T @ targets).float()
    weights = load_file(folder / "w.safetensors")
    weights["10.weight"], weights["10.bias"] = solution[:-1].T.contiguous(), solution[-1].clone()
    save_file(weights, folder / "w.safetensors")


def member_of(folder: Path) -> LoadedMember:
    spec = load_spec(folder / "ensemble.yaml")
    return load_member(spec, spec.members[0], folder, CPU)


def inputs_of(folder: Path) -> MemberInputs:
    preprocessors, groups = preprocessors_of(load_spec(folder / "ensemble.yaml"), folder, CPU)
    return MemberInputs(preprocessors, groups, CPU)


def batch_of(folder: Path, paths: Sequence[Path]) -> Tensor:
    """The member's inputs for some images."""
    inputs = inputs_of(folder)
    images = [inputs.prepare_file(p.read_bytes(), p.name, max_pixels=10**6) for p in paths]
    return inputs.batch(0, images)


def write_csv(file: Path, rows: Sequence[tuple[Path, str | None]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", "label"])
        writer.writerows((path.relative_to(file.parent), label) for path, label in rows)


@pytest.fixture(scope="module")
def proof(folder: Path) -> LabelledProof:
    """Make the proof as the build makes it."""
    spec = load_spec(folder / "ensemble.yaml")
    data = read_labelled(folder / "data.csv", spec)
    return LabelledProof(spec, folder, [member_of(folder)], inputs_of(folder), data)


def build(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, dict[str, object]]:
    """Build with the labelled images; return what was printed, and the executable's record."""
    options = ["--data", str(folder / "data.csv"), "--output", str(output)]
    assert main(["build", str(folder / "ensemble.yaml"), *options]) == 0
    printed = capsys.readouterr().out
    (archive,) = output.glob("*.mar")
    with zipfile.ZipFile(archive) as opened:
        record = json.loads(opened.read("ensemble/compiled/compiled.json"))
    (executable,) = record["executables"]
    return printed, executable


def test_auto_takes_int8_if_the_held_out_images_prove_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefer_int8(monkeypatch)
    printed, executable = build(folder, tmp_path, capsys)
    assert (
        "wide in lower precision: 100.00% of the held-out decisions are right as saved, 100.00%"
        in printed
    )
    assert any("chosen" in row for row in rows_of([printed], "int8"))
    assert executable["precision"] == "int8"
    # No image of 600 is worse: 1 - 0.05 ** (1 / 600).
    assert executable["metric_loss"] == pytest.approx(0.00498, abs=1e-5)


def test_what_the_development_images_refuse_is_not_used(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefer_int8(monkeypatch)
    # Calibrated on images of one value only, the activations' ranges fit nothing else.
    spoilt = lambda model, calibration, goal=None: quantized(model, 0 * calibration)  # noqa: E731
    monkeypatch.setattr(candidates, "quantized", spoilt)
    printed, executable = build(folder, tmp_path, capsys)
    for row in rows_of([printed], "int8"):
        assert "of the" in row
    assert executable["precision"] in ("bfloat16", "float32")


class Doubtful:
    """A proof whose development images all stay right, and whose held-out images do not."""

    max_loss = 0.005

    def __init__(self, proof: MetricProof) -> None:
        self._proof = proof

    def development_inputs(self, position: int) -> Tensor:
        return self._proof.development_inputs(position)

    def development_loss(self, positions: Sequence[int], outputs: Tensor) -> float:
        return 0.0

    def held_out_inputs(self, position: int) -> Iterator[Tensor]:
        return self._proof.held_out_inputs(position)

    def loss(self, outputs: Mapping[int, Tensor]) -> MetricLoss:
        return replace(self._proof.loss(outputs), num_worse=3, upper_bound=0.0128)


def test_what_the_held_out_images_do_not_prove_is_taken_back(
    folder: Path, proof: LabelledProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer_int8(monkeypatch)
    reports: list[str] = []
    spec = load_spec(folder / "ensemble.yaml")
    samples = sorted((folder / "samples").iterdir())
    doubtful = Doubtful(proof)
    with compiled_members(
        spec, folder, samples=samples, make_proof=lambda *_: doubtful, report=reports.append
    ) as files:
        record = json.loads(files["compiled/compiled.json"].read_text())
    assert "1.28% may be decided" in rows_of(reports, "int8")[0]
    (executable,) = record["executables"]
    assert executable["precision"] in ("bfloat16", "float32")
    assert executable["metric_loss"] is None
    (chosen,) = [line for line in reports[-1].splitlines() if "chosen" in line]
    assert executable["precision"] in chosen


def test_only_images_that_become_worse_count(folder: Path, proof: LabelledProof) -> None:
    spec = load_spec(folder / "ensemble.yaml")
    data = read_labelled(folder / "data.csv", spec)
    _, held_out = split(spec, data)
    with torch.no_grad():
        outputs = member_of(folder)(batch_of(folder, [data.paths[row] for row in held_out]))
    assert proof.loss({0: outputs}).num_worse == 0
    others = outputs.roll(1, dims=1)
    outputs[:4] = others[:4]
    loss = proof.loss({0: outputs})
    assert (loss.num_images, loss.num_worse) == (600, 4)
    assert loss.right_after == pytest.approx(1 - 4 / 600)
    # Clopper and Pearson's bound for 4 of 600.
    assert loss.upper_bound == pytest.approx(beta.ppf(0.95, 5, 596))


def test_images_of_a_group_count_once(folder: Path) -> None:
    spec = load_spec(folder / "ensemble.yaml")
    data = read_labelled(folder / "data.csv", spec)
    pairs = replace(data, groups=torch.arange(NUM_IMAGES) // 2)
    with pytest.raises(
        SpecError, match=r"300 held-out groups .* takes 598 held-out groups, and so 748"
    ):
        split(spec, pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "560 held-out images cannot prove runtime.max_metric_loss: 0.005; that takes 598"),
        ({"max_metric_loss": 0.0}, "cannot prove runtime.max_metric_loss: 0; set it above 0"),
    ],
)
def test_too_few_images_are_refused_with_their_number(
    folder: Path, settings: dict[str, float], message: str
) -> None:
    spec = load_spec(folder / "ensemble.yaml")
    spec = replace(spec, runtime=replace(spec.runtime, **settings))
    data = read_labelled(folder / "data.csv", spec)
    few = replace(data, paths=data.paths[:700], targets=data.targets[:700])
    with pytest.raises(SpecError, match=message):
        split(spec, few)


def test_a_regression_cannot_be_proven(folder: Path) -> None:
    spec = load_spec(folder / "ensemble.yaml")
    data = read_labelled(folder / "data.csv", spec)
    with pytest.raises(SpecError, match="a regression has no decisions"):
        split(replace(spec, task=Task.REGRESSION), data)
