"""Compute the metrics of a member or a policy on labelled data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from ..handlers.base.tasks import Task
from .proportions import wilson


@dataclass(frozen=True)
class Metrics:
    """The metrics of a member or a policy.

    Attributes:
        values: name -> value; NaN if the metric is not defined.
        intervals: name -> (low, high) 95 % interval. `compute_metrics` gives those of proportions,
            after Wilson (1927); `with_intervals` gives all.
        counts: name -> number of answers: true and false positives and negatives over all labels;
            for classification the right ones, all that were given, and all samples.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


def compute_metrics(
    scores: Tensor,
    decisions: Tensor | None,
    targets: Tensor,
    task: Task,
    *,
    with_areas: bool = True,
) -> Metrics:
    """Compute the metrics of one member or policy.

    Presence and multilabel: each label of each sample is one yes-or-no question. Classification:
    `coverage` is the share of samples that got exactly one label, and `accuracy` the share of right
    answers among them; all others are means over the classes, each against the rest. Regression:
    RMSE, MAE, R².

    Args:
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        targets: (N, C) bool, or float32 for regression.
        task: what the scores are.
        with_areas: also compute the areas under curves, which take the longest.
    """
    if task is Task.REGRESSION:
        return _regression(scores, targets)
    assert decisions is not None
    if task is Task.CLASSIFICATION:
        metrics = _classification(decisions, targets)
        return _with_class_areas(metrics, scores, targets) if with_areas else metrics
    metrics = _detection(decisions, targets)
    return _with_areas(metrics, scores, targets) if with_areas else metrics


def _detection(decisions: Tensor, targets: Tensor) -> Metrics:
    hits = int((decisions & targets).sum())
    false_alarms = int((decisions & ~targets).sum())
    misses = int((~decisions & targets).sum())
    rejections = int((~decisions & ~targets).sum())
    proportions = {
        "accuracy": (hits + rejections, targets.numel()),
        "recall": (hits, hits + misses),
        "specificity": (rejections, rejections + false_alarms),
        "precision": (hits, hits + false_alarms),
        "false_positive_rate": (false_alarms, rejections + false_alarms),
    }
    values = {name: _ratio(*pair) for name, pair in proportions.items()}
    values["f1"] = _ratio(2 * hits, 2 * hits + misses + false_alarms)
    counts = {"true_positives": hits, "false_positives": false_alarms}
    counts |= {"false_negatives": misses, "true_negatives": rejections}
    return Metrics(values, {n: wilson(*pair) for n, pair in proportions.items()}, counts)


def _with_areas(metrics: Metrics, scores: Tensor, targets: Tensor) -> Metrics:
    areas = {"auroc": math.nan, "average_precision": math.nan}
    if 0 < int(targets.sum()) < targets.numel():
        truth, flat = targets.flatten().numpy(), scores.flatten().double().numpy()
        areas["auroc"] = float(roc_auc_score(truth, flat))
        areas["average_precision"] = float(average_precision_score(truth, flat))
    return replace(metrics, values={**metrics.values, **areas})


def _with_class_areas(metrics: Metrics, scores: Tensor, targets: Tensor) -> Metrics:
    """Add the mean areas over the classes that some samples have and others do not."""
    classes = [c for c in range(targets.shape[1]) if 0 < int(targets[:, c].sum()) < len(targets)]
    areas = {"auroc": math.nan, "average_precision": math.nan}
    if classes:
        truth, wide = targets.numpy(), scores.double().numpy()
        areas["auroc"] = float(np.mean([roc_auc_score(truth[:, c], wide[:, c]) for c in classes]))
        areas["average_precision"] = float(
            np.mean([average_precision_score(truth[:, c], wide[:, c]) for c in classes])
        )
    return replace(metrics, values={**metrics.values, **areas})


def _classification(decisions: Tensor, targets: Tensor) -> Metrics:
    is_answered = decisions.sum(dim=1) == 1
    truth, chosen = targets.float().argmax(dim=1), decisions.float().argmax(dim=1)
    num_right = int((is_answered & (truth == chosen)).sum())
    total, num_answered = len(targets), int(is_answered.sum())
    # A sample without exactly one label is a miss of its class and a hit of none.
    labels = targets.shape[1]
    hits = torch.bincount(truth[is_answered & (truth == chosen)], minlength=labels).double()
    recall = hits / torch.bincount(truth, minlength=labels).clamp(min=1)
    num_answers = torch.bincount(chosen[is_answered], minlength=labels)
    precision = hits / num_answers.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    values = {"accuracy": _ratio(num_right, num_answered), "coverage": _ratio(num_answered, total)}
    values |= {"recall": float(recall.mean()), "precision": float(precision.mean())}
    values["f1"] = float(f1.mean())
    others = (total - torch.bincount(truth, minlength=labels)).clamp(min=1)
    values["specificity"] = float((1 - (num_answers - hits) / others).mean())
    intervals = {"accuracy": wilson(num_right, num_answered)}
    intervals["coverage"] = wilson(num_answered, total)
    counts = {"right": num_right, "answered": num_answered, "samples": total}
    return Metrics(values, intervals, counts)


def _regression(values: Tensor, targets: Tensor) -> Metrics:
    error = values.double() - targets.double()
    variance = (targets.double() - targets.double().mean(dim=0)).square().sum()
    squared = error.square().sum()
    return Metrics(
        {
            "rmse": float(error.square().mean().sqrt()),
            "mae": float(error.abs().mean()),
            "r2": float(1 - squared / variance) if variance > 0 else math.nan,
        }
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def diversity(
    votes: Tensor, targets: Tensor, names: tuple[str, ...]
) -> dict[str, list[list[float]]]:
    """Measure how differently pairs of members err (Kuncheva and Whitaker 2003).

    Args:
        votes: (M, N, C) bool.
        targets: (N, C) bool.
        names: names of the M members.

    Returns:
        Name of a measure -> (M, M) table: ``disagreement`` (share of samples that one of a pair
        gets right and the other wrong), ``q_statistic`` and ``correlation``; NaN if not defined.
    """
    right = (votes == targets).all(dim=2).double()
    members = len(names)
    tables: dict[str, list[list[float]]] = {
        name: [[math.nan] * members for _ in names]
        for name in ("disagreement", "q_statistic", "correlation")
    }
    for i in range(members):
        for j in range(members):
            both = float((right[i] * right[j]).sum())
            none = float(((1 - right[i]) * (1 - right[j])).sum())
            only_i = float((right[i] * (1 - right[j])).sum())
            only_j = float(((1 - right[i]) * right[j]).sum())
            tables["disagreement"][i][j] = (only_i + only_j) / right.shape[1]
            product, cross = both * none, only_i * only_j
            if product + cross > 0:
                tables["q_statistic"][i][j] = (product - cross) / (product + cross)
            sides = (both + only_i) * (only_j + none) * (both + only_j) * (only_i + none)
            if sides > 0:
                tables["correlation"][i][j] = (product - cross) / math.sqrt(sides)
    return tables


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error (Naeini et al. 2015; Guo et al. 2017).

    Args:
        confidence: (N,) float in [0, 1].
        correct: (N,) bool, whether what the confidence is about came true.
        bins: number of bins of equal width.
    """
    bin_of_sample = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for index in range(bins):
        inside = bin_of_sample == index
        if bool(inside.any()):
            gap = confidence[inside].double().mean() - correct[inside].double().mean()
            error += float(inside.double().mean() * gap.abs())
    return error


def confidence_and_truth(scores: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Pair scores with what came true, for calibration.

    Returns:
        (K,) confidence and (K,) bool whether it came true: of each sample's best class for
        classification, of every score for presence and multilabel.
    """
    if task is Task.CLASSIFICATION:
        best = scores.argmax(dim=1)
        rows = torch.arange(len(scores))
        return scores[rows, best], targets[rows, best]
    return scores.flatten(), targets.flatten()
