"""Compute 95 % intervals by the bootstrap (Efron 1979), for metrics that are no plain proportions.

Whole images are drawn with replacement, since the labels of one image depend on one another. If
images belong to groups, such as the frames of a video, whole groups are drawn. A draw is a row that
counts how often each image was drawn, so that a metric is computed for all draws at once.
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

_MAX_COUNTS_AT_ONCE = 20_000_000
"""Draws times labels of all images. More are drawn in parts, so that the counts fit into memory."""

_MAX_SCORES_FOR_AREAS = 200_000
"""With more scores, intervals of areas under curves would take longer than all others together."""


def with_intervals(
    metrics: Metrics,
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    *,
    groups: Tensor | None = None,
    seed: int = 0,
) -> Metrics:
    """Give every metric an interval.

    Wilson's intervals are kept where trials are independent: not for several labels of one image,
    and not for images of one group.

    Args:
        metrics: metrics of the other arguments.
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        targets: (N, C) bool, or float32 for regression.
        task: what the scores are.
        groups: (N,) int64 group of each image; None: each is a group of its own.
        seed: of the draws.
    """
    draws = bootstrap(scores, decisions, targets, task, groups=groups, seed=seed)
    are_independent = task is not Task.MULTILABEL and groups is None
    wilson = metrics.intervals if are_independent else {}
    intervals = {}
    for name in metrics.values:
        if name in wilson:
            intervals[name] = wilson[name]
        elif name in draws and np.isfinite(draws[name]).any():
            low, high = np.nanquantile(draws[name], [0.025, 0.975])
            intervals[name] = (float(low), float(high))
    return replace(metrics, intervals=intervals)


def bootstrap(
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    *,
    groups: Tensor | None = None,
    draws: int = DRAWS,
    with_areas: bool = True,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Compute each metric on every bootstrap sample.

    Args:
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        targets: (N, C) bool, or float32 for regression.
        task: what the scores are.
        groups: (N,) int64 group of each image; None: each is a group of its own.
        draws: number of bootstrap samples.
        with_areas: also compute the areas under curves, which take the longest.
        seed: of the draws.

    Returns:
        Name -> (draws,) values of a metric, NaN where a draw does not define it.
    """
    parts: dict[str, list[np.ndarray]] = {}
    draws_at_once = max(1, _MAX_COUNTS_AT_ONCE // max(1, targets.numel()))
    group_of_image = None
    num_units = len(targets)
    if groups is not None:
        units, group_of_image = np.unique(groups.numpy(), return_inverse=True)
        num_units = len(units)
    for start in range(0, draws, draws_at_once):
        counts = _draw_counts(num_units, min(draws_at_once, draws - start), seed + start)
        if group_of_image is not None:
            counts = counts[:, group_of_image]
        values_by_name = _metrics_of_draws(counts, scores, decisions, targets, task, with_areas)
        for name, values in values_by_name.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


@lru_cache(maxsize=2)
def _draw_counts(num_units: int, rows: int, seed: int) -> np.ndarray:
    """(rows, num_units) how often each draw has each unit; the same draws for all candidates."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=rows)
    return counts.astype(np.float64)


def _metrics_of_draws(
    counts: np.ndarray,
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    with_areas: bool = True,
) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        if decisions is None:
            return _regression(counts, scores.double().numpy(), targets.double().numpy())
        if task is Task.CLASSIFICATION:
            values = _classification(counts, decisions, targets)
        else:
            values = _detection(counts, decisions.numpy(), targets.numpy())
        if with_areas and targets.numel() <= _MAX_SCORES_FOR_AREAS:
            values |= _areas(counts, scores.numpy(), targets.numpy(), task)
        return values


def _detection(
    counts: np.ndarray, decisions: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    hits = counts @ (decisions & targets).sum(axis=1)
    false_alarms = counts @ (decisions & ~targets).sum(axis=1)
    misses = counts @ (~decisions & targets).sum(axis=1)
    rejections = counts @ (~decisions & ~targets).sum(axis=1)
    return {
        "accuracy": (hits + rejections) / (hits + rejections + false_alarms + misses),
        "recall": hits / (hits + misses),
        "specificity": rejections / (rejections + false_alarms),
        "precision": hits / (hits + false_alarms),
        "false_positive_rate": false_alarms / (rejections + false_alarms),
        "f1": 2 * hits / (2 * hits + misses + false_alarms),
    }


def _classification(
    counts: np.ndarray, decisions: Tensor, targets: Tensor
) -> dict[str, np.ndarray]:
    labels = targets.shape[1]
    truth = targets.numpy()
    # A sample without exactly one label is a miss of its class and a hit of none.
    is_answered = (decisions.sum(dim=1) == 1).numpy()
    answers = decisions.numpy() & is_answered[:, None]
    hits, given = counts @ (answers & truth), counts @ answers
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
    """Areas under the curves; for classification the means over the classes that have samples."""
    labels = targets.shape[1]
    if task is not Task.CLASSIFICATION:
        counts_of_scores = np.repeat(counts, labels, axis=1)
        auroc, precision = _area(counts_of_scores, scores.ravel(), targets.ravel())
        return {"auroc": auroc, "average_precision": precision}
    present = [label for label in range(labels) if 0 < targets[:, label].sum() < len(targets)]
    if not present:
        return {}
    areas = [_area(counts, scores[:, label], targets[:, label]) for label in present]
    return {
        "auroc": np.mean([auroc for auroc, _ in areas], axis=0),
        "average_precision": np.mean([precision for _, precision in areas], axis=0),
    }


def _area(
    counts: np.ndarray, scores: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of every draw.

    AUROC is Mann and Whitney's U over the number of pairs; ties count half.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, is_positive = scores[order], truth[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    weights = counts[:, order]
    hits = np.add.reduceat(weights * is_positive, starts, axis=1)
    false_alarms = np.add.reduceat(weights * ~is_positive, starts, axis=1)
    hits_so_far, false_alarms_so_far = hits.cumsum(axis=1), false_alarms.cumsum(axis=1)
    positives, negatives = hits_so_far[:, -1], false_alarms_so_far[:, -1]
    negatives_below = negatives[:, None] - false_alarms_so_far + false_alarms / 2
    auroc = (hits * negatives_below).sum(axis=1) / (positives * negatives)
    # A draw may lack all of the highest scores: then there are no answers yet to take a share of.
    precision = hits_so_far / np.maximum(hits_so_far + false_alarms_so_far, 1)
    return auroc, (hits * precision).sum(axis=1) / positives


def _regression(
    counts: np.ndarray, values: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    error = values - targets
    num_values = counts.sum(axis=1) * targets.shape[1]
    squared = counts @ np.square(error).sum(axis=1)
    centre = counts @ targets / counts.sum(axis=1, keepdims=True)
    variance = counts @ np.square(targets).sum(axis=1) - (
        counts.sum(axis=1) * np.square(centre).sum(axis=1)
    )
    return {
        "rmse": np.sqrt(squared / num_values),
        "mae": counts @ np.abs(error).sum(axis=1) / num_values,
        "r2": 1 - squared / variance,
    }
