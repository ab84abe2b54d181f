"""Intervals by the bootstrap, against scikit-learn's metrics of the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.tuning.intervals import bootstrap, with_intervals
from torchserve_ensemble.tuning.metrics import compute_metrics

DRAWS = 20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(samples: int) -> np.ndarray:
    """The counts that `bootstrap` draws with seed 0."""
    shares = np.full(samples, 1 / samples)
    return np.random.default_rng(0).multinomial(samples, shares, size=DRAWS)


@pytest.mark.parametrize("task", [Task.PRESENCE, Task.MULTILABEL])
def test_detection_is_scikit_learns_with_the_draw_as_weights(task: Task) -> None:
    labels = 1 if task is Task.PRESENCE else 3
    # Coarse scores, so that there are ties.
    scores = (torch.rand(60, labels, generator=generator()) * 10).round() / 10
    targets = torch.rand(60, labels, generator=generator(1)) < 0.3 + 0.3 * scores
    decisions = scores >= 0.5
    results = bootstrap(scores, decisions, targets, task, draws=DRAWS)
    truth, answer, flat = targets.flatten(), decisions.flatten(), scores.flatten().numpy()
    for row, counts in enumerate(draws(60)):
        weights = np.repeat(counts, labels)
        expected = {
            "accuracy": metrics.accuracy_score(truth, answer, sample_weight=weights),
            "recall": metrics.recall_score(truth, answer, sample_weight=weights),
            "precision": metrics.precision_score(truth, answer, sample_weight=weights),
            "f1": metrics.f1_score(truth, answer, sample_weight=weights),
            "specificity": metrics.recall_score(~truth, ~answer, sample_weight=weights),
            "auroc": metrics.roc_auc_score(truth, flat, sample_weight=weights),
            "average_precision": metrics.average_precision_score(
                truth, flat, sample_weight=weights
            ),
        }
        for name, value in expected.items():
            assert results[name][row] == pytest.approx(value), name


def test_a_draw_of_everything_once_gives_the_metrics() -> None:
    """Metrics and draws are two implementations; where they meet they must agree."""
    from torchserve_ensemble.tuning.intervals import _metrics_of_draws

    scores = torch.rand(80, 4, generator=generator()).softmax(dim=1)
    targets = torch.nn.functional.one_hot(torch.arange(80) % 4, 4).bool()
    decisions = torch.nn.functional.one_hot(scores.argmax(dim=1), 4).bool()
    decisions[:7] = False
    decisions[7] = True
    whole = np.ones((1, 80))
    for task in (Task.CLASSIFICATION, Task.MULTILABEL):
        expected = compute_metrics(scores, decisions, targets, task).values
        again = _metrics_of_draws(whole, scores, decisions, targets, task)
        assert set(again) == set(expected)
        for name, value in expected.items():
            assert again[name][0] == pytest.approx(value), name
    expected = compute_metrics(scores, None, targets.float(), Task.REGRESSION).values
    again = _metrics_of_draws(whole, scores, None, targets.float(), Task.REGRESSION)
    assert {n: v[0] for n, v in again.items()} == pytest.approx(dict(expected))


def test_metrics_of_classes_are_scikit_learns() -> None:
    scores = torch.rand(90, 3, generator=generator()).softmax(dim=1)
    truth = torch.arange(90) % 3
    targets = torch.nn.functional.one_hot(truth, 3).bool()
    answer = scores.argmax(dim=1)
    decisions = torch.nn.functional.one_hot(answer, 3).bool()
    results = compute_metrics(scores, decisions, targets, Task.CLASSIFICATION).values
    wide = scores.double().numpy() / scores.double().numpy().sum(axis=1, keepdims=True)
    assert results["auroc"] == pytest.approx(
        metrics.roc_auc_score(truth, wide, multi_class="ovr", average="macro")
    )
    assert results["average_precision"] == pytest.approx(
        metrics.average_precision_score(truth, wide, average="macro")
    )
    table = metrics.multilabel_confusion_matrix(truth, answer)
    each = table[:, 0, 0] / (table[:, 0, 0] + table[:, 0, 1])
    assert results["specificity"] == pytest.approx(each.mean())


def test_intervals_hold_the_figure_and_shrink_with_more_samples() -> None:
    widths = []
    for samples in (100, 1600):
        targets = torch.rand(samples, 1, generator=generator()) < 0.4
        scores = (targets + torch.randn(samples, 1, generator=generator(1))).sigmoid()
        decisions = scores >= 0.6
        results = compute_metrics(scores, decisions, targets, Task.PRESENCE)
        wide = with_intervals(results, scores, decisions, targets, Task.PRESENCE)
        assert set(wide.intervals) == set(wide.values)
        assert wide.intervals["recall"] == results.intervals["recall"], "Wilson's stays"
        for name, (low, high) in wide.intervals.items():
            assert low <= wide.values[name] <= high, name
        widths.append(wide.intervals["f1"][1] - wide.intervals["f1"][0])
    assert widths[1] < widths[0] / 2


def test_intervals_cover_the_true_area() -> None:
    """95 % of intervals should hold the truth: of 100 hardly fewer than 88."""
    covered = 0
    for seed in range(100):
        targets = torch.arange(160).unsqueeze(1) % 2 == 0
        # Two normal distributions one standard deviation apart: AUROC = Phi(1 / sqrt 2).
        scores = targets + torch.randn(160, 1, generator=generator(seed))
        low, high = np.quantile(
            bootstrap(scores, scores >= 0.5, targets, Task.PRESENCE, draws=200)["auroc"],
            [0.025, 0.975],
        )
        covered += int(low <= 0.76025 <= high)
    assert covered >= 88


def test_what_a_draw_does_not_define_gets_no_interval() -> None:
    targets = torch.ones(5, 1).bool()
    scores = torch.rand(5, 1, generator=generator())
    results = compute_metrics(scores, scores >= 0.5, targets, Task.PRESENCE)
    wide = with_intervals(results, scores, scores >= 0.5, targets, Task.PRESENCE)
    assert "auroc" not in wide.intervals


def test_images_of_a_group_are_drawn_together() -> None:
    """Ten copies of each image tell no more than one: the intervals must not shrink."""
    targets = torch.rand(60, 1, generator=generator()) < 0.5
    scores = (targets + torch.randn(60, 1, generator=generator(1))).sigmoid()
    copies, groups = torch.arange(60).repeat_interleave(10), torch.arange(60).repeat_interleave(10)
    widths = {}
    for name, rows, group in (("one", torch.arange(60), None), ("ten", copies, groups)):
        metrics = compute_metrics(scores[rows], scores[rows] >= 0.6, targets[rows], Task.PRESENCE)
        wide = with_intervals(
            metrics, scores[rows], scores[rows] >= 0.6, targets[rows], Task.PRESENCE, groups=group
        )
        low, high = wide.intervals["recall"]
        widths[name] = high - low
    assert widths["ten"] == pytest.approx(widths["one"], rel=0.15)
