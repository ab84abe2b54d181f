"""Draw the pictures of the report, each as an HTML image that contains its bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from ..handlers.base.tasks import Task
from .fitting import Outputs
from .metrics import calibration_error, confidence_and_truth, diversity
from .selection import MeasuredCandidate
from .tune import Tuning

_RELIABILITY_BINS = 10
_MAX_CURVES = 6
_MAX_CLASS_CURVES = 10


def candidate_curves(tuning: Tuning) -> str:
    """Draw ROC and precision-recall curves of the best candidates, and the point of each one."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    truth = tuning.development.targets.flatten().numpy()
    ranked = sorted(tuning.measured, key=lambda m: -_area(m))
    others = [m for m in ranked if m is not tuning.chosen][: _MAX_CURVES - 1]
    for each in tuning.measured:
        values = each.out_of_fold.values
        point: dict[str, Any] = {"color": "gray", "s": 30, "zorder": 3}
        if each is tuning.chosen:
            point = {"color": "red", "marker": "*", "s": 250, "zorder": 4, "label": "chosen"}
        roc.scatter(values["false_positive_rate"], values["recall"], **point)
        precision.scatter(values["recall"], values["precision"], **point)
    for each in (*others, tuning.chosen):
        scores = each.scores.flatten().double().numpy()
        _draw_curves(roc, precision, truth, scores, each.candidate.name)
    return _finished_curves(figure, roc, precision, "points: each policy at its threshold")


def class_curves(tuning: Tuning) -> str:
    """Draw ROC and precision-recall curves of the chosen policy, each class against the rest.

    If there are many classes, those with the smallest areas are drawn.
    """
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    targets = tuning.development.targets.numpy()
    scores = tuning.chosen.scores.double().numpy()
    present = [c for c in range(targets.shape[1]) if 0 < targets[:, c].sum() < len(targets)]
    present.sort(key=lambda c: float(roc_auc_score(targets[:, c], scores[:, c])))
    for c in sorted(present[:_MAX_CLASS_CURVES]):
        _draw_curves(roc, precision, targets[:, c], scores[:, c], tuning.spec.score_labels[c])
    which = (
        "each class"
        if len(present) <= _MAX_CLASS_CURVES
        else (f"the {_MAX_CLASS_CURVES} hardest of {len(present)} classes")
    )
    return _finished_curves(figure, roc, precision, f"{which} against the rest")


def _draw_curves(roc: Any, precision: Any, truth: Any, scores: Any, name: str) -> None:
    x, y, _ = roc_curve(truth, scores)
    roc.plot(x, y, label=f"{name} ({roc_auc_score(truth, scores):.4f})")
    y, x, _ = precision_recall_curve(truth, scores)
    precision.plot(x, y, label=f"{name} ({average_precision_score(truth, scores):.4f})")


def _finished_curves(figure: Figure, roc: Any, precision: Any, title: str) -> str:
    roc.set(xlabel="false positive rate", ylabel="recall", title=f"ROC (area); {title}")
    precision.set(xlabel="recall", ylabel="precision", title="precision and recall (area)")
    for axes in (roc, precision):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return _picture(figure, "ROC and precision-recall curves")


def _area(measured: MeasuredCandidate) -> float:
    area = measured.out_of_fold.values.get("auroc", math.nan)
    return -1.0 if math.isnan(area) else area


def confusions(tuning: Tuning) -> str:
    """Draw confusion matrices of the best member and of the chosen policy, out of fold."""
    task, targets = tuning.spec.task, tuning.development.targets
    best = max(
        (m for m in tuning.measured if m.candidate.member is not None),
        key=lambda m: tuning.target.merit(dict(m.out_of_fold.values)),
    )
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, each in zip(figure.subplots(1, 2), (best, tuning.chosen), strict=True):
        assert each.decisions is not None
        if task is Task.CLASSIFICATION:
            labels = [*tuning.spec.labels, "none"]
            answers = each.decisions.float().argmax(dim=1)
            answers[each.decisions.sum(dim=1) != 1] = len(labels) - 1
            pair = (targets.float().argmax(dim=1).numpy(), answers.numpy())
        else:
            labels = list(tuning.spec.labels) if task is Task.PRESENCE else ["no", "yes"]
            pair = (targets.flatten().int().numpy(), each.decisions.flatten().int().numpy())
        table = confusion_matrix(*pair, labels=list(range(len(labels))))
        _heat_map(axes, table, labels, each.candidate.name, "d")
        axes.set(xlabel="answer", ylabel="truth")
    return _picture(figure, "confusion matrices")


def reliability(tuning: Tuning) -> str:
    """Draw scores against the share that came true, with the spec's and the fitted temperatures."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    calibrated = tuning.fitted.apply(tuning.held_out)
    for axes, outputs, title in zip(
        figure.subplots(1, 2, sharey=True),
        (tuning.held_out, calibrated),
        ("with the spec's temperatures", "with the temperatures that are used"),
        strict=True,
    ):
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
        for index, name in enumerate(outputs.panel.member_names):
            _reliability_line(axes, outputs, index, name, tuning.spec.task)
        axes.set(xlabel="score", ylabel="share that came true", title=title)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return _picture(figure, "reliability of the members")


def _reliability_line(axes: Any, outputs: Outputs, index: int, name: str, task: Task) -> None:
    confidence, truth = confidence_and_truth(outputs.scores[index], outputs.targets, task)
    error = calibration_error(confidence, truth)
    bin_of_score = (confidence * _RELIABILITY_BINS).long().clamp(max=_RELIABILITY_BINS - 1)
    points = []
    for number in range(_RELIABILITY_BINS):
        inside = bin_of_score == number
        if bool(inside.any()):
            points.append((float(confidence[inside].mean()), float(truth[inside].float().mean())))
    axes.plot(*zip(*points, strict=True), marker="o", label=f"{name} (ECE {error:.4f})")


def diversities(tuning: Tuning) -> str:
    """Draw how differently pairs of members err."""
    outputs = tuning.development
    names = outputs.panel.member_names
    tables = diversity(outputs.ballot().votes, outputs.targets, names)
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, 3), tables.items(), strict=True):
        _heat_map(axes, np.array(table), names, name.replace("_", " "), ".2f")
    return _picture(figure, "diversity of the members")


def _heat_map(axes: Any, table: Any, names: Sequence[str], title: str, number_format: str) -> None:
    finite = table[np.isfinite(table)]
    lowest = min(0.0, float(finite.min())) if finite.size else 0.0
    highest = float(finite.max()) if finite.size else 1.0
    axes.imshow(table, cmap="Blues", vmin=lowest, vmax=max(highest, lowest + 1e-9))
    positions = range(len(names))
    axes.set_xticks(positions, names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(positions, names, fontsize=8)
    axes.set_title(title)
    for row in positions:
        for column in positions:
            value = table[row][column]
            is_dark = value - lowest > 0.6 * (highest - lowest)
            color = "white" if is_dark else "black"
            text = format(value, number_format)
            axes.text(column, row, text, ha="center", va="center", color=color)


def _picture(figure: Figure, description: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=90)
    data = base64.b64encode(target.getvalue()).decode()
    return f"<img alt='{description}' src='data:image/png;base64,{data}'>"
