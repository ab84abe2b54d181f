"""95 % intervals by the bootstrap (Efron 1979), for metrics that are no plain proportions.

Samples are drawn with replacement, a sample with all its labels at once, as labels of one image
depend on one another. A draw is a row of counts, so that every figure is computed for all draws at
once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch import Tensor

from ..handlers.base.tasks import Task
from .metrics import Metrics

DRAWS = 400
"""Bootstrap samples for an interval."""

_MAX_DRAWN_VALUES = 20_000_000
"""Larger data are drawn in parts, so that the drawn counts fit into memory."""

_AREAS_UP_TO = 200_000


def with_intervals(
    found: Metrics,
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    *,
    seed: int = 0,
) -> Metrics:
    """The metrics with an interval for each; Wilson's stay, but for multilabel.

    Wilson's interval takes its trials for independent, which the labels of one image are not.

    Args:
        found: of the other arguments.
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        targets: (N, C) bool, or float32 for regression.
        task: what the scores are.
        seed: of the draws.
    """
    drawn = bootstrap(scores, decisions, targets, task, seed=seed)
    known = {} if task is Task.MULTILABEL else found.intervals
    intervals = {}
    for name in found.values:
        if name in known:
            intervals[name] = known[name]
        elif name in drawn and np.isfinite(drawn[name]).any():
            low, high = np.nanquantile(drawn[name], [0.025, 0.975])
            intervals[name] = (float(low), float(high))
    return replace(found, intervals=intervals)


def bootstrap(
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Name -> (draws,) values of a figure, NaN where a draw does not define it."""
    parts: dict[str, list[np.ndarray]] = {}
    step = max(1, _MAX_DRAWN_VALUES // max(1, targets.numel()))
    for start in range(0, draws, step):
        counts = _counts(len(targets), min(step, draws - start), seed + start)
        found = _metrics(counts, scores, decisions, targets, task)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


@lru_cache(maxsize=2)
def _counts(samples: int, rows: int, seed: int) -> np.ndarray:
    """(rows, samples) how often each draw has each sample; the same for all candidates."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(samples, np.full(samples, 1 / samples), size=rows)
    return counts.astype(np.float64)


def _metrics(
    counts: np.ndarray, scores: Tensor, decisions: Tensor | None, targets: Tensor, task: Task
) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        if decisions is None:
            return _regression(counts, scores.double().numpy(), targets.double().numpy())
        if task is Task.CLASSIFICATION:
            found = _classification(counts, decisions, targets)
        else:
            found = _detection(counts, decisions.numpy(), targets.numpy())
        if targets.numel() <= _AREAS_UP_TO:
            found |= _areas(counts, scores.numpy(), targets.numpy(), task)
        return found


def _detection(
    counts: np.ndarray, decisions: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    hit = counts @ (decisions & targets).sum(axis=1)
    false_alarm = counts @ (decisions & ~targets).sum(axis=1)
    missed = counts @ (~decisions & targets).sum(axis=1)
    rest = counts @ (~decisions & ~targets).sum(axis=1)
    return {
        "accuracy": (hit + rest) / (hit + rest + false_alarm + missed),
        "recall": hit / (hit + missed),
        "specificity": rest / (rest + false_alarm),
        "precision": hit / (hit + false_alarm),
        "false_positive_rate": false_alarm / (rest + false_alarm),
        "f1": 2 * hit / (2 * hit + missed + false_alarm),
    }


def _classification(
    counts: np.ndarray, decisions: Tensor, targets: Tensor
) -> dict[str, np.ndarray]:
    labels = targets.shape[1]
    truth = targets.numpy()
    # A sample without exactly one label is a miss of its class and a hit of none.
    single = (decisions.sum(dim=1) == 1).numpy()
    named = decisions.numpy() & single[:, None]
    hits, given = counts @ (named & truth), counts @ named
    present, total = counts @ truth, counts.sum(axis=1)
    recall = hits / np.maximum(present, 1)
    precision = hits / np.maximum(given, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    absent = total[:, None] - present
    specificity = 1 - (given - hits) / np.maximum(absent, 1)
    answered = given.sum(axis=1)
    return {
        "accuracy": hits.sum(axis=1) / answered,
        "coverage": answered / total,
        "recall": recall.sum(axis=1) / labels,
        "precision": precision.sum(axis=1) / labels,
        "f1": f1.sum(axis=1) / labels,
        "specificity": specificity.sum(axis=1) / labels,
    }


def _areas(
    counts: np.ndarray, scores: np.ndarray, targets: np.ndarray, task: Task
) -> dict[str, np.ndarray]:
    """Areas under the curves; of a classification the means over the classes that are there."""
    labels = targets.shape[1]
    if task is not Task.CLASSIFICATION:
        spread = np.repeat(counts, labels, axis=1)
        auroc, precision = _area(spread, scores.ravel(), targets.ravel())
        return {"auroc": auroc, "average_precision": precision}
    there = [label for label in range(labels) if 0 < targets[:, label].sum() < len(targets)]
    if not there:
        return {}
    each = [_area(counts, scores[:, label], targets[:, label]) for label in there]
    return {
        "auroc": np.mean([auroc for auroc, _ in each], axis=0),
        "average_precision": np.mean([precision for _, precision in each], axis=0),
    }


def _area(
    counts: np.ndarray, scores: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (as Mann and Whitney's U, ties counted half) and average precision of every draw."""
    order = np.argsort(-scores, kind="stable")
    ordered, yes = scores[order], truth[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    weights = counts[:, order]
    hits = np.add.reduceat(weights * yes, starts, axis=1)
    false_alarms = np.add.reduceat(weights * ~yes, starts, axis=1)
    found, wrong = hits.cumsum(axis=1), false_alarms.cumsum(axis=1)
    positives, negatives = found[:, -1], wrong[:, -1]
    behind = negatives[:, None] - wrong + false_alarms / 2
    auroc = (hits * behind).sum(axis=1) / (positives * negatives)
    # Ties that a draw left out have neither hits nor false alarms before the first of either.
    precision = found / np.maximum(found + wrong, 1)
    return auroc, (hits * precision).sum(axis=1) / positives


def _regression(
    counts: np.ndarray, values: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    error = values - targets
    numbers = counts.sum(axis=1) * targets.shape[1]
    squared = counts @ np.square(error).sum(axis=1)
    centre = counts @ targets / counts.sum(axis=1, keepdims=True)
    variance = counts @ np.square(targets).sum(axis=1) - (
        counts.sum(axis=1) * np.square(centre).sum(axis=1)
    )
    return {
        "rmse": np.sqrt(squared / numbers),
        "mae": counts @ np.abs(error).sum(axis=1) / numbers,
        "r2": 1 - squared / variance,
    }
