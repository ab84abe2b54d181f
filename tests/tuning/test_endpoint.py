"""From labelled images to an operating point, and the same metrics from what is then served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_ensemble import ask, image, probes

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import SampleError, ServerError
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.serving.client import Prediction
from torchserve_ensemble.tuning.endpoint import (
    Served,
    evaluate_endpoint,
    metrics_of_predictions,
)
from torchserve_ensemble.tuning.labelled_data import LabelledData, read_labelled
from torchserve_ensemble.tuning.member_outputs import member_outputs
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.tune import split, tune
from torchserve_ensemble.tuning.writing import write_operating_point

TARGETS = {
    "presence": "recall>=0.6",
    "multilabel": "precision>=0.6",
    "classification": "accuracy>=0.6",
    "regression": "minimise rmse",
}


class Client:
    """A client of a service in this process."""

    def __init__(self, service: EnsembleService) -> None:
        self.service = service

    def predict_all(
        self, name: str, images: Any, *, version: str | None, options: dict[str, str]
    ) -> Iterator[Prediction]:
        """As `InferenceClient.predict_all`, some images at once."""
        waiting = [content for _, content in images]
        for start in range(0, len(waiting), 7):
            answer = ask(self.service, *waiting[start : start + 7], **options)
            yield from map(Prediction.from_json, answer["predictions"])


def labelled(folder: Path, task: str) -> Path:
    """Gray images and what they show, with mistakes near the border."""
    (folder / "images").mkdir()
    lines = [f"file,{'brightness' if task == 'regression' else 'label'}"]
    for index in range(90):
        level = index / 89
        wrong = 0.35 < level < 0.65 and index % 3 == 0
        label = "bright" if (level > 0.5) != wrong else "dark"
        shown = f"{5 * level - 2:.3f}" if task == "regression" else label
        (folder / "images" / f"{index}.png").write_bytes(image(level))
        lines.append(f"images/{index}.png,{shown}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


@pytest.mark.parametrize("task", TARGETS)
def test_what_is_tuned_is_what_is_served(tmp_path: Path, task: str) -> None:
    probes(tmp_path, task=task, bounds=(0.3, 0.5, 0.8))
    path = tmp_path / "ensemble.yaml"
    spec = load_spec(path)
    data = read_labelled(labelled(tmp_path, task), spec)
    target = parse_target(TARGETS[task], spec.task)
    tuning = tune(spec, data, member_outputs(spec, tmp_path, data), target)
    point = tuning.operating_point
    write_operating_point(
        path,
        name="tuned",
        policy=point.text,
        fitted=tuning.fitted,
        metrics=point.held_out.values,
        data_name=data.name,
        data_digest=data.digest,
    )
    rows = split(spec, data, target).held_out
    held_out = replace(
        data, paths=tuple(data.paths[row] for row in rows), targets=data.targets[rows]
    )
    service = load_service(load_spec(path), tmp_path)
    served = Served.of(service.describe())
    assert (served.task, served.score_labels) == (spec.task, spec.score_labels)
    client: Any = Client(service)
    answers = evaluate_endpoint(client, "probes", served, held_out, policy="tuned")
    assert list(answers) == ["combined", "a", "b", "c"]
    for name, value in point.held_out.values.items():
        # Scores differ in the last digit between batch sizes; counts of decisions do not.
        assert answers["combined"].values[name] == pytest.approx(value, abs=1e-5), name
    assert answers["combined"].counts == point.held_out.counts
    assert answers["combined"].intervals


def data_of(targets: list[list[bool]]) -> LabelledData:
    paths = tuple(Path(f"{index}.png") for index in range(len(targets)))
    return LabelledData("data", paths, torch.tensor(targets), "sha256:0")


def answer(score: float, **members: float) -> Prediction:
    label = "bright" if score >= 0.5 else "dark"
    each = {name: answer(value) for name, value in members.items()}
    return Prediction(label, (label,), score, {"bright": score}, members=each)


class TestAnswers:
    served = Served.of({"task": "presence", "labels": ["dark", "bright"]})

    def test_a_member_that_left_an_image_out_has_no_metrics(self) -> None:
        answers = [answer(0.9, a=0.9, b=0.8), answer(0.2, a=0.6)]
        results = metrics_of_predictions(self.served, data_of([[True], [False]]), answers)
        assert list(results) == ["combined", "a"]
        assert results["combined"].values["accuracy"] == 1
        assert results["a"].counts["false_positives"] == 1

    def test_an_image_without_an_answer_is_named(self) -> None:
        answers = [answer(0.9), Prediction(error="not an image")]
        with pytest.raises(SampleError, match=r"1\.png: not an image"):
            metrics_of_predictions(self.served, data_of([[True], [False]]), answers)

    def test_answers_that_are_too_few(self) -> None:
        with pytest.raises(ServerError, match="1 answers to 2 images"):
            metrics_of_predictions(self.served, data_of([[True], [False]]), [answer(0.9)])

    def test_a_model_of_another_kind(self) -> None:
        with pytest.raises(ServerError, match="--spec"):
            Served.of({"error": "no describe"})


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_command_reports_every_task(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task=task, bounds=(0.3, 0.5, 0.8))
    source = labelled(tmp_path, task)
    command = ["tune", str(tmp_path / "ensemble.yaml"), "--data", str(source), "--folds", "3"]
    command += ["--target", TARGETS[task], "--report", str(tmp_path / "report"), "--no-write"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "on the 45 held-out images: " in printed
    assert ("\nGuaranteed: " in printed) == (task != "regression")
    rows = [line for line in printed.splitlines() if line.lstrip().startswith("member ")]
    assert len(rows) == 3
    assert max(map(len, rows)) <= 80
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (written["guarantee"] is None) == (task == "regression")
    assert set(written["held_out"]["metrics"]) == set(written["candidates"][0]["out_of_fold"])
    assert (written["diversity"] is None) == (task == "regression")
    assert len(written["calibration"]) == (0 if task == "regression" else 3)
    for each in written["candidates"]:
        defined = {name for name, value in each["out_of_fold"].items() if value is not None}
        assert defined == set(each["intervals"]), each["name"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h2>On held-out images</h2>" in page
    assert ("ROC and precision-recall curves" in page) == (task != "regression")
    assert "http" not in page.partition("<body>")[2], "nothing is loaded from elsewhere"
