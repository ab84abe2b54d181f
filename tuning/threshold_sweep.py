"""Sweep a policy's threshold: metrics at every value, and the value that best meets a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..handlers.base.tasks import Task
from ..handlers.policies import Outcome
from ..handlers.policies.selective import confidence
from .targets import SMALLER_IS_BETTER, Target

_STEPS = 120
_STRICTER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class ThresholdCurve:
    """What a policy does at each value of its thresholds.

    Attributes:
        values: the thresholds, without those at which all samples get the same answer.
        metrics: name -> the metric at each threshold. Areas under curves are left out, since no
            threshold changes them.
    """

    values: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]

    def best(self, target: Target) -> float | None:
        """The value that serves the target best, the first among equals; None: there is none."""
        if not self.values:
            return None
        merits = [target.merit(seen) for seen in self.metrics]
        return self.values[merits.index(max(merits))]


def threshold_curve(outcome: Outcome, targets: Tensor, task: Task) -> ThresholdCurve:
    """Compute the metrics at each threshold.

    For presence and multilabel a label is chosen if its score reaches the threshold. For
    classification the threshold is the lowest confidence of an answer; below it the policy
    abstains.

    Args:
        outcome: of the policy with the thresholds not set, on N samples.
        targets: (N, C) bool.
        task: any but regression.
    """
    assert outcome.decisions is not None
    values = list(_grid(outcome.scores, targets, task))
    # In the precision in which policies compare.
    thresholds = torch.tensor(values, dtype=torch.float32)
    if task is Task.CLASSIFICATION:
        found, same = _selective(outcome.scores, outcome.decisions, targets, thresholds)
    else:
        found, same = _thresholded(outcome.scores, targets, thresholds)
    return _kept(values, found, same)


def detection_curve(values: Sequence[float], decisions: Tensor, targets: Tensor) -> ThresholdCurve:
    """Metrics of one label's decisions at each value of a thresholds.

    Args:
        values: V of them.
        decisions: (V, N) bool.
        targets: (N,) bool.
    """
    hit = decisions[:, targets].sum(dim=1).double()
    false_alarm = decisions[:, ~targets].sum(dim=1).double()
    same = decisions.all(dim=1) | ~decisions.any(dim=1)
    return _kept(values, _detection(hit, false_alarm, targets), same)


def _kept(values: Sequence[float], found: Mapping[str, Tensor], same: Tensor) -> ThresholdCurve:
    """Without the values that give all samples the same answer."""
    columns = {name: column.tolist() for name, column in found.items()}
    kept = [index for index, flag in enumerate(same.tolist()) if not flag]
    return ThresholdCurve(
        tuple(values[index] for index in kept),
        tuple({name: column[index] for name, column in columns.items()} for index in kept),
    )


def stricter(target: Target) -> list[Target]:
    """The target, and ever stricter ones up to a perfect value.

    A threshold that just reaches a bound on the samples that it was chosen on misses it on about
    half of all other sets of samples. One that was chosen for a stricter bound keeps a distance.
    """
    if target.bound is None:
        return [target]
    perfect = 0.0 if target.metric in SMALLER_IS_BETTER else 1.0
    distance = perfect - target.bound
    return [replace(target, bound=target.bound + share * distance) for share in _STRICTER]


def says_nothing(decisions: Tensor | None) -> bool:
    """Whether all samples get the same answer, by which any bound on one figure is reached."""
    return decisions is not None and bool((decisions == decisions[:1]).all())


def _grid(scores: Tensor, targets: Tensor, task: Task) -> Iterator[float]:
    """Values between the scores, fine among the positives and among the negatives."""
    if task is Task.CLASSIFICATION:
        groups = [scores.amax(dim=1)]
        yield 0.0
    else:
        groups = [scores[targets], scores[~targets]]
        yield 0.5
    steps = torch.linspace(0, 1, _STEPS // len(groups) + 1, dtype=torch.float64)
    values: set[float] = set()
    for group in groups:
        if len(group):
            ordered = torch.unique(group.double())
            between = torch.cat([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])
            values |= set(_quantiles(between, steps))
    # Rounded as they are written into the spec, down, so that a score at the value still counts.
    yield from sorted({max(0.0, float(f"{value - 5e-7:.6f}")) for value in values})


def _quantiles(ordered: Tensor, steps: Tensor) -> Sequence[float]:
    """As `Tensor.quantile` of a sorted tensor, which itself refuses more than 16 million."""
    places = steps * (len(ordered) - 1)
    lower = places.long()
    upper = (lower + 1).clamp(max=len(ordered) - 1)
    found: list[float] = torch.lerp(ordered[lower], ordered[upper], places - lower).tolist()
    return found


def _thresholded(
    scores: Tensor, targets: Tensor, thresholds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    hit, false_alarm = _reached(scores[targets], thresholds), _reached(scores[~targets], thresholds)
    lowest, highest = scores.amin(dim=0), scores.amax(dim=0)
    column = thresholds.unsqueeze(1)
    same = ((lowest >= column) | (highest < column)).all(dim=1)
    return _detection(hit, false_alarm, targets), same


def _detection(hit: Tensor, false_alarm: Tensor, targets: Tensor) -> dict[str, Tensor]:
    positives = int(targets.sum())
    negatives = targets.numel() - positives
    missed, rest = positives - hit, negatives - false_alarm
    return {
        "accuracy": _ratio(hit + rest, torch.full_like(hit, targets.numel())),
        "recall": _ratio(hit, hit + missed),
        "specificity": _ratio(rest, rest + false_alarm),
        "precision": _ratio(hit, hit + false_alarm),
        "false_positive_rate": _ratio(false_alarm, rest + false_alarm),
        "f1": _ratio(2 * hit, 2 * hit + missed + false_alarm),
    }


def _selective(
    scores: Tensor, decisions: Tensor, targets: Tensor, thresholds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    sure = confidence(scores, decisions, Task.CLASSIFICATION)
    single = decisions.sum(dim=1) == 1
    truth, chosen = targets.float().argmax(dim=1), decisions.float().argmax(dim=1)
    labels = range(targets.shape[1])
    right = single & (truth == chosen)
    hits = torch.stack([_reached(sure[right & (truth == c)], thresholds) for c in labels], dim=1)
    named = torch.stack([_reached(sure[single & (chosen == c)], thresholds) for c in labels], dim=1)
    samples = torch.bincount(truth, minlength=len(labels))
    recall = hits / samples.clamp(min=1)
    precision = hits / named.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    given = named.sum(dim=1)
    found = {
        "accuracy": _ratio(hits.sum(dim=1), given),
        "coverage": given / len(targets),
        "recall": recall.mean(dim=1),
        "precision": precision.mean(dim=1),
        "f1": f1.mean(dim=1),
    }
    none, every = sure.amax() < thresholds, sure.amin() >= thresholds
    return found, none | (every & says_nothing(decisions))


def _reached(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores reach each value, as float64."""
    ordered = scores.float().sort().values
    return (len(ordered) - torch.searchsorted(ordered, thresholds, right=False)).double()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """NaN where the whole is 0."""
    return part / whole
