"""Metrics, fits and the choice of an operating point."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_ensemble import image, probes
from sklearn import metrics

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Panel
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.tuning.fitting import (
    Outputs,
    fit_dawid_skene,
    fit_parameters,
    fit_temperature,
    fit_weights,
    members_with_logits,
)
from torchserve_ensemble.tuning.labelled_data import read_labelled
from torchserve_ensemble.tuning.metrics import (
    calibration_error,
    compute_metrics,
    diversity,
)
from torchserve_ensemble.tuning.proportions import wilson
from torchserve_ensemble.tuning.selection import choose, measure
from torchserve_ensemble.tuning.targets import parse_target


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def panel(task: Task, members: int = 3, labels: int = 1) -> Panel:
    return Panel(
        task=task,
        member_names=tuple("abcdefgh"[:members]),
        weights=torch.ones(members),
        member_thresholds=torch.full((members, labels), 0.5),
        thresholds=torch.full((labels,), 0.5),
    )


def presence(samples: int = 400, noise: float = 1.5, *, informative: bool = True) -> Outputs:
    """Three members that see the truth through their own noise, one of them less well."""
    targets = torch.rand(samples, 1, generator=generator(1)) < 0.3
    truth = targets if informative else targets[torch.randperm(samples, generator=generator(2))]
    strength = torch.tensor([noise, noise, 2 * noise]).view(3, 1, 1)
    signal = 2.0 * truth.float() - 1
    logits = 2 * signal + strength * torch.randn(3, samples, 1, generator=generator(3))
    return Outputs(panel(Task.PRESENCE), logits.sigmoid(), logits, targets)


class TestMetrics:
    @settings(deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_detection_is_scikit_learns(self, seed: int) -> None:
        scores = torch.rand(40, 2, generator=generator(seed))
        targets = torch.rand(40, 2, generator=generator(seed + 1)) < 0.4
        decisions = scores >= 0.5
        results = compute_metrics(scores, decisions, targets, Task.MULTILABEL).values
        truth, answer = targets.flatten().numpy(), decisions.flatten().numpy()
        assert results["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer))
        assert results["recall"] == pytest.approx(metrics.recall_score(truth, answer))
        assert results["precision"] == pytest.approx(metrics.precision_score(truth, answer))
        assert results["f1"] == pytest.approx(metrics.f1_score(truth, answer))
        assert results["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores.flatten()))
        tn, fp, fn, tp = metrics.confusion_matrix(truth, answer).ravel()
        assert results["specificity"] == pytest.approx(tn / (tn + fp))
        counts = compute_metrics(scores, decisions, targets, Task.MULTILABEL).counts
        assert list(counts.values()) == [tp, fp, fn, tn]

    @settings(deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_classification_is_scikit_learns(self, seed: int) -> None:
        scores = torch.rand(60, 4, generator=generator(seed)).softmax(dim=1)
        truth = torch.randint(0, 4, (60,), generator=generator(seed + 1))
        targets = torch.nn.functional.one_hot(truth, 4).bool()
        answer = scores.argmax(dim=1)
        decisions = torch.nn.functional.one_hot(answer, 4).bool()
        results = compute_metrics(scores, decisions, targets, Task.CLASSIFICATION).values
        assert results["coverage"] == 1
        assert results["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer))
        expected = metrics.f1_score(truth, answer, average="macro", labels=range(4))
        assert results["f1"] == pytest.approx(expected)

    def test_no_answer_lowers_coverage_not_accuracy(self) -> None:
        targets = torch.eye(2).bool()
        decisions = torch.tensor([[True, False], [False, False]])
        results = compute_metrics(targets.float(), decisions, targets, Task.CLASSIFICATION).values
        assert (results["accuracy"], results["coverage"], results["recall"]) == (1.0, 0.5, 0.5)

    def test_regression(self) -> None:
        values, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.5]])
        results = compute_metrics(values, None, targets, Task.REGRESSION).values
        assert results["mae"] == pytest.approx(0.75)
        assert results["rmse"] == pytest.approx(metrics.root_mean_squared_error(targets, values))
        assert results["r2"] == pytest.approx(metrics.r2_score(targets, values))

    @given(st.integers(1, 500), st.data())
    def test_wilson(self, trials: int, data: st.DataObject) -> None:
        hits = data.draw(st.integers(0, trials))
        low, high = wilson(hits, trials)
        assert 0 <= low <= hits / trials + 1e-12
        assert hits / trials - 1e-12 <= high <= 1
        wider = wilson(hits * 4, trials * 4)
        assert wider[1] - wider[0] < high - low

    def test_wilson_against_a_published_value(self) -> None:
        assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998

    def test_calibration_error(self) -> None:
        sure = torch.tensor([0.95] * 20)
        assert calibration_error(sure, torch.ones(20).bool()) == pytest.approx(0.05, abs=1e-6)
        assert calibration_error(sure, torch.zeros(20).bool()) == pytest.approx(0.95, abs=1e-6)

    def test_diversity_of_a_member_with_itself_and_with_its_opposite(self) -> None:
        targets = torch.tensor([[True], [True], [False], [False]])
        votes = torch.stack([targets.clone(), targets.clone(), ~targets])
        votes[0, 0] = votes[1, 0] = False
        votes[2] = ~votes[0]
        tables = diversity(votes, targets, ("a", "b", "c"))
        assert tables["disagreement"][0][1:] == [0.0, 1.0]
        assert tables["q_statistic"][0][1:] == [1.0, -1.0]
        assert tables["correlation"][0][1:] == pytest.approx([1.0, -1.0])


class TestFits:
    @pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
    @pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.PRESENCE])
    def test_a_known_temperature_is_found(self, task: Task, true: float) -> None:
        """Labels drawn from the softmax of the logits are calibrated at temperature 1."""
        labels = 4 if task is Task.CLASSIFICATION else 1
        logits = 2 * torch.randn(20_000, labels, generator=generator())
        if task is Task.CLASSIFICATION:
            truth = torch.multinomial(logits.softmax(dim=1), 1, generator=generator(1))
            targets = torch.zeros_like(logits).scatter_(1, truth, 1).bool()
        else:
            targets = torch.rand(logits.shape, generator=generator(1)) < logits.sigmoid()
        assert fit_temperature(true * logits, targets, task) == pytest.approx(true, rel=0.05)

    def test_better_members_weigh_more(self) -> None:
        weights = fit_weights(presence())
        assert weights[2] < weights[0]
        assert bool((weights >= 0).all())

    def test_dawid_skene_counts(self) -> None:
        outputs = presence()
        model = fit_dawid_skene(outputs)
        votes = outputs.ballot().votes
        caught = int((votes[0] & outputs.targets).sum())
        positives = int(outputs.targets.sum())
        assert model.confusions[0, 1, 1].item() == pytest.approx((caught + 1) / (positives + 2))

    def test_what_was_learned_is_applied_to_logits(self) -> None:
        outputs = presence()
        fitted = fit_parameters(outputs, members_with_logits(outputs))
        applied = fitted.apply(outputs)
        for index, temperature in enumerate(fitted.temperatures):
            expected = (outputs.logits[index] / temperature).sigmoid()
            assert torch.allclose(applied.scores[index], expected)


class TestChoice:
    def test_the_target_is_reached_and_precision_made_the_best(self) -> None:
        target = parse_target("recall>=0.9", Task.PRESENCE)
        results, _ = measure(presence(), target)
        chosen = choose(results, target)
        values = chosen.out_of_fold.values
        assert values["recall"] >= 0.9
        rivals = [m for m in results if m.out_of_fold.values["recall"] >= 0.9]
        assert values["precision"] == max(m.out_of_fold.values["precision"] for m in rivals)
        singles = [m for m in rivals if m.candidate.member is not None]
        assert all(values["precision"] > m.out_of_fold.values["precision"] for m in singles)

    def test_nothing_leaks_between_folds(self) -> None:
        """Members that know nothing: fits that saw the test samples would look good."""
        target = parse_target("maximise f1", Task.PRESENCE)
        results, _ = measure(presence(200, informative=False), target)
        for each in results:
            assert 0.35 < each.out_of_fold.values["auroc"] < 0.65, each.candidate.name

    def test_what_is_written_gives_the_metrics_in_sample(self) -> None:
        outputs = presence()
        target = parse_target("specificity>=0.95", Task.PRESENCE)
        results, fitted = measure(outputs, target)
        from torchserve_ensemble.tuning.selection import bind

        applied = fitted.apply(outputs)
        for each in results:
            outcome = bind(each.text, applied, fitted).combine(applied.ballot())
            again = compute_metrics(
                outcome.scores, outcome.decisions, outputs.targets, Task.PRESENCE
            )
            assert again.counts == each.in_sample.counts, each.text

    def test_answering_always_the_same_is_no_way_to_reach_a_target(self) -> None:
        target = parse_target("recall>=1", Task.PRESENCE)
        results, _ = measure(presence(noise=4), target)
        decisions = choose(results, target).decisions
        assert decisions is not None
        assert not bool(decisions.all())

    def test_classification_trades_coverage_for_accuracy(self) -> None:
        truth = torch.randint(0, 3, (400,), generator=generator())
        targets = torch.nn.functional.one_hot(truth, 3).bool()
        logits = 2 * targets.float() + 1.5 * torch.randn(3, 400, 3, generator=generator(1))
        task = Task.CLASSIFICATION
        outputs = Outputs(panel(task, 3, 3), logits.softmax(dim=2), logits, targets)
        target = parse_target("accuracy>=0.97", task)
        results, _ = measure(outputs, target)
        values = choose(results, target).out_of_fold.values
        assert values["accuracy"] >= 0.97
        assert 0.3 < values["coverage"] < 1

    def test_regression_weighs_members_by_their_error(self) -> None:
        targets = torch.randn(300, 1, generator=generator())
        noise = torch.tensor([0.2, 0.2, 2.0]).view(3, 1, 1)
        scores = targets + noise * torch.randn(3, 300, 1, generator=generator(1))
        task = Task.REGRESSION
        outputs = Outputs(panel(task), scores, torch.full_like(scores, torch.nan), targets)
        target = parse_target("minimise rmse", task)
        results, _ = measure(outputs, target)
        rmse = {m.candidate.name: m.out_of_fold.values["rmse"] for m in results}
        assert rmse["weighted_mean"] < rmse["mean"]
        assert choose(results, target).candidate.name in ("weighted_mean", "stacking")


@pytest.mark.parametrize(
    ("text", "task", "words"),
    [
        ("recall", Task.PRESENCE, "write METRIC>=VALUE"),
        ("recall>=0.9.9", Task.PRESENCE, "write METRIC>=VALUE"),
        ("recall>=.", Task.PRESENCE, "write METRIC>=VALUE"),
        ("recal>=0.9", Task.PRESENCE, "did you mean 'recall'"),
        ("recall<=0.9", Task.PRESENCE, "better when it is larger"),
        ("maximise rmse", Task.REGRESSION, "better when it is smaller"),
        ("specificity>=0.9", Task.CLASSIFICATION, "has no metric 'specificity'"),
    ],
)
def test_wrong_targets(text: str, task: Task, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_target(text, task)
    assert words in caught.value.message


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Gray images: from 0.45 on they count as bright, with some mistakes near the border."""
    data = tmp_path / "data"
    levels = np.linspace(0.02, 0.98, 120)
    for index, level in enumerate(levels):
        wrong = 0.4 < level < 0.6 and index % 4 == 0
        label = "bright" if (level > 0.5) != wrong else "dark"
        (data / label).mkdir(parents=True, exist_ok=True)
        (data / label / f"{index}.png").write_bytes(image(float(level)))
    (data / ".hidden").mkdir()
    return data


class TestData:
    def test_folder_and_csv_are_the_same(self, labelled: Path, tmp_path: Path) -> None:
        probes(tmp_path, task="presence")
        spec = load_spec(tmp_path / "ensemble.yaml")
        folder = read_labelled(labelled, spec)
        lines = [
            f"{path.relative_to(tmp_path)},{'bright' if target else 'dark'}"
            for path, target in zip(folder.paths, folder.targets[:, 0].tolist(), strict=True)
        ]
        (tmp_path / "data.csv").write_text("\n".join(["file,label", *lines]))
        table = read_labelled(tmp_path / "data.csv", spec)
        assert torch.equal(folder.targets, table.targets)
        assert (folder.digest, len(folder.paths)) == (table.digest, 120)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("file\na.png", "column 'label' is missing"),
            ("file,label\na.png,brigth", "line 2: 'brigth' is no label"),
            ("file,label\na.png,dark;bright", "2 labels; task presence takes one"),
            ("file,label\nnone.png,dark", "cannot be read"),
            ("file,label\n", "no labelled image"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, words: str) -> None:
        probes(tmp_path, task="presence")
        (tmp_path / "a.png").write_bytes(image(0.5))
        (tmp_path / "data.csv").write_text(text)
        with pytest.raises(SpecError) as caught:
            read_labelled(tmp_path / "data.csv", load_spec(tmp_path / "ensemble.yaml"))
        assert words in caught.value.message


def test_the_command_writes_an_operating_point_and_a_report(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence", bounds=(0.3, 0.5, 0.8))
    path = tmp_path / "ensemble.yaml"
    content = json.loads(path.read_text())
    yaml = ["# mine", *(f"{key}: {json.dumps(value)}" for key, value in content.items())]
    path.write_text("\n".join(yaml) + "  # the last comment\n")
    command = ["tune", str(path), "--data", str(labelled), "--target", "recall>=0.8"]
    report = tmp_path / "report"
    assert main([*command, "--name", "screening", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    spec = load_spec(path)
    text = spec.policies.named["screening"]
    assert f"policies.named.screening is {text}" in printed
    assert "# mine" in path.read_text()
    assert "# the last comment" in path.read_text()
    assert spec.provenance.metrics["screening on held-out images of data"]["recall"] >= 0.8
    guarantee = spec.provenance.guarantees["screening"]
    assert guarantee.startswith("Guaranteed: recall>=0.8 with 95 % confidence. On 30 held-out")
    assert "same source" in guarantee
    assert "\nGuaranteed: recall>=0.8 with 95 % confidence" in printed
    assert (spec.provenance.tuning_data or "").startswith("sha256:")
    assert any(member.temperature != 1 for member in spec.members)
    content = json.loads((report / "report.json").read_text())
    assert content["chosen"] == re.sub(r'model="[^"]*"(, )?', "", text)
    assert content["guarantee"]["holds"]
    assert content["guarantee"]["bound"] >= 0.8
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.partition("<body>")[2], "nothing is loaded from elsewhere"
    assert "name='viewport'" in page, "a phone shows it at its own width"
    assert page.count("<div class='table'><table>") == page.count("<table>") == 3
    for word in ("reach", "miss"):
        assert word not in printed + page, "one verdict: guaranteed, or not guaranteed"
    assert main([*command, "--name", "again", "--no-write"]) == 0


def test_a_target_that_is_not_guaranteed_leaves_the_spec_alone(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence")
    path = tmp_path / "ensemble.yaml"
    before = path.read_text()
    command = ["tune", str(path), "--data", str(labelled), "--target", "accuracy>=0.95"]
    report = tmp_path / "report"
    assert main([*command, "--report", str(report)]) == 3
    printed = capsys.readouterr().out
    assert "Not guaranteed: accuracy>=0.95 with 95 % confidence. On 60 held-out images" in printed
    assert "\nGuaranteed" not in printed
    assert path.read_text() == before
    content = json.loads((report / "report.json").read_text())
    assert (content["reached"], content["guarantee"]["holds"]) == (False, False)
    assert "Not guaranteed" in (report / "report.html").read_text()


def test_a_target_that_the_images_cannot_show_is_refused_before_the_members_run(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence")
    command = ["tune", str(tmp_path / "ensemble.yaml"), "--data", str(labelled), "--target"]
    (tmp_path / "a.safetensors").write_bytes(b"not read")
    for target, options, words in (
        ("recall>=0.95", [], "takes at least 59 held-out images with the label, and there are 30"),
        ("recall>=0.99", [], "takes at least 299 held-out images with the label"),
        ("recall>=0.9", ["--confidence", "0.99"], "takes at least 44"),
        ("recall>=0.9", ["--held-out", "0.2"], "takes at least 29 .* there are 12"),
        ("recall>=1", [], "no number of images shows that there is never an exception"),
        ("recall>=0.5", ["--confidence", "1"], "--confidence 1: write a number between 0 and 1"),
    ):
        assert main([*command, target, *options]) == 1
        message = " ".join(capsys.readouterr().err.split())
        assert re.search(words, message), message
