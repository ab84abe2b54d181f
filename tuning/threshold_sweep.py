"""Sweep a policy's threshold: metrics at every value, and the value that best meets a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..handlers.base.tasks import Task
from ..handlers.policies import Outcome
from ..handlers.policies.selective import confidence
from .targets import Target

_NUM_THRESHOLDS = 120
"""The number of thresholds between the tails, about."""

_TAIL_SHARES = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.0125)
"""Shares of the scores at either end between which thresholds lie closer, for targets near 1."""


@dataclass(frozen=True)
class ThresholdCurve:
    """The metrics of a policy at each value of its threshold.

    Attributes:
        values: the default threshold and then the others, ascending; without those at which all
            samples get the same answer.
        metrics: for each threshold name -> metric. Areas under curves are left out, since no
            threshold changes them.
    """

    values: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]

    def best(self, target: Target) -> float | None:
        """The threshold that best meets a target, the first among equals; None: there is none."""
        if not self.values:
            return None
        merits = [target.merit(metrics) for metrics in self.metrics]
        return self.values[merits.index(max(merits))]


def threshold_curve(outcome: Outcome, targets: Tensor, task: Task) -> ThresholdCurve:
    """Compute the metrics at each threshold.

    For presence and multilabel a label is chosen if its score reaches the threshold. For
    classification the threshold is the lowest confidence of an answer; below it the policy
    abstains.

    Args:
        outcome: the policy's answers to N samples, without any threshold.
        targets: (N, C) bool.
        task: any task except regression.
    """
    assert outcome.decisions is not None
    values = list(_grid(outcome.scores, targets, task))
    # In the precision in which policies compare.
    thresholds = torch.tensor(values, dtype=torch.float32)
    if task is Task.CLASSIFICATION:
        metrics, is_constant_at = _selective(outcome.scores, outcome.decisions, targets, thresholds)
    else:
        metrics, is_constant_at = _thresholded(outcome.scores, targets, thresholds)
    return _without_constant(values, metrics, is_constant_at)


def detection_curve(values: Sequence[float], decisions: Tensor, targets: Tensor) -> ThresholdCurve:
    """Compute the metrics of one label's decisions at each value of a parameter.

    Args:
        values: V values of the parameter.
        decisions: (V, N) bool, the decisions at each value.
        targets: (N,) bool.
    """
    hits = decisions[:, targets].sum(dim=1).double()
    false_alarms = decisions[:, ~targets].sum(dim=1).double()
    is_constant_at = decisions.all(dim=1) | ~decisions.any(dim=1)
    return _without_constant(values, _detection(hits, false_alarms, targets), is_constant_at)


def _without_constant(
    values: Sequence[float], metrics: Mapping[str, Tensor], is_constant_at: Tensor
) -> ThresholdCurve:
    """Leave out the thresholds at which all samples get the same answer."""
    columns = {name: column.tolist() for name, column in metrics.items()}
    positions = [index for index, flag in enumerate(is_constant_at.tolist()) if not flag]
    return ThresholdCurve(
        tuple(values[index] for index in positions),
        tuple({name: column[index] for name, column in columns.items()} for index in positions),
    )


def is_constant(decisions: Tensor | None) -> bool:
    """Whether all samples get the same answer, which meets many targets but is of no use."""
    return decisions is not None and bool((decisions == decisions[:1]).all())


def _grid(scores: Tensor, targets: Tensor, task: Task) -> Iterator[float]:
    """Thresholds between the scores: at even shares of the positives and of the negatives."""
    if task is Task.CLASSIFICATION:
        score_sets = [scores.amax(dim=1)]
        yield 0.0
    else:
        score_sets = [scores[targets], scores[~targets]]
        yield 0.5
    even = torch.linspace(0, 1, _NUM_THRESHOLDS // len(score_sets) + 1, dtype=torch.float64)
    tail = torch.tensor(_TAIL_SHARES, dtype=torch.float64)
    shares = torch.cat([even, tail, 1 - tail])
    thresholds: set[float] = set()
    for score_set in score_sets:
        if len(score_set):
            ordered = torch.unique(score_set.double())
            between = torch.cat([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])
            thresholds |= set(_quantiles(between, shares))
    # Rounded as they are written into the spec; down, so that a score that equals the threshold
    # still reaches it.
    yield from sorted({max(0.0, float(f"{value - 5e-7:.6f}")) for value in thresholds})


def _quantiles(ordered: Tensor, shares: Tensor) -> Sequence[float]:
    """Compute quantiles of a sorted tensor; `Tensor.quantile` refuses more than 16 million."""
    places = shares * (len(ordered) - 1)
    lower = places.long()
    upper = (lower + 1).clamp(max=len(ordered) - 1)
    quantiles: list[float] = torch.lerp(ordered[lower], ordered[upper], places - lower).tolist()
    return quantiles


def _thresholded(
    scores: Tensor, targets: Tensor, thresholds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Metrics at each threshold, and at which thresholds all samples get the same answer."""
    hits = _num_reaching(scores[targets], thresholds)
    false_alarms = _num_reaching(scores[~targets], thresholds)
    lowest, highest = scores.amin(dim=0), scores.amax(dim=0)
    column = thresholds.unsqueeze(1)
    is_constant_at = ((lowest >= column) | (highest < column)).all(dim=1)
    return _detection(hits, false_alarms, targets), is_constant_at


def _detection(hits: Tensor, false_alarms: Tensor, targets: Tensor) -> dict[str, Tensor]:
    positives = int(targets.sum())
    negatives = targets.numel() - positives
    misses, rejections = positives - hits, negatives - false_alarms
    return {
        "accuracy": (hits + rejections) / targets.numel(),
        "recall": hits / (hits + misses),
        "specificity": rejections / (rejections + false_alarms),
        "precision": hits / (hits + false_alarms),
        "false_positive_rate": false_alarms / (rejections + false_alarms),
        "f1": 2 * hits / (2 * hits + misses + false_alarms),
    }


def _selective(
    scores: Tensor, decisions: Tensor, targets: Tensor, thresholds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Metrics at each minimum confidence, and at which ones all samples get the same answer."""
    sure = confidence(scores, decisions, Task.CLASSIFICATION)
    is_answered = decisions.sum(dim=1) == 1
    truth, answer = targets.float().argmax(dim=1), decisions.float().argmax(dim=1)
    labels = range(targets.shape[1])
    is_right = is_answered & (truth == answer)
    hits = torch.stack(
        [_num_reaching(sure[is_right & (truth == c)], thresholds) for c in labels], dim=1
    )
    answers = torch.stack(
        [_num_reaching(sure[is_answered & (answer == c)], thresholds) for c in labels], dim=1
    )
    recall = hits / torch.bincount(truth, minlength=len(labels)).clamp(min=1)
    precision = hits / answers.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    num_answers = answers.sum(dim=1)
    metrics = {
        "accuracy": hits.sum(dim=1) / num_answers,
        "coverage": num_answers / len(targets),
        "recall": recall.mean(dim=1),
        "precision": precision.mean(dim=1),
        "f1": f1.mean(dim=1),
    }
    has_no_answer, has_all_answers = sure.amax() < thresholds, sure.amin() >= thresholds
    return metrics, has_no_answer | (has_all_answers & is_constant(decisions))


def _num_reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """The number of scores that reach each threshold, as float64, so that 0 / 0 is NaN."""
    ordered = scores.float().sort().values
    return (len(ordered) - torch.searchsorted(ordered, thresholds, right=False)).double()
