"""The pictures of the report, each as an HTML image with its bytes inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from ..handlers.base.tasks import Task
from .fitting import Outputs
from .metrics import calibration_error, confidence_and_truth, diversity
from .selection import Measured
from .tune import Tuning

_BINS = 10
_CURVES = 6


def curves(tuning: Tuning) -> str:
    """ROC and precision against recall, with the point of each candidate."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    truth = tuning.data.targets.flatten().numpy()
    ranked = sorted(tuning.measured, key=lambda m: -_area(m))
    shown = [*[m for m in ranked if m is not tuning.chosen][: _CURVES - 1], tuning.chosen]
    for each in tuning.measured:
        values = each.out_of_fold.values
        point: dict[str, Any] = {"color": "gray", "s": 30, "zorder": 3}
        if each is tuning.chosen:
            point = {"color": "red", "marker": "*", "s": 250, "zorder": 4, "label": "chosen"}
        roc.scatter(values["false_positive_rate"], values["recall"], **point)
        precision.scatter(values["recall"], values["precision"], **point)
    for each in shown:
        scores = each.scores.flatten().double().numpy()
        x, y, _ = roc_curve(truth, scores)
        roc.plot(x, y, label=f"{each.candidate.name} ({_area(each):.4f})")
        y, x, _ = precision_recall_curve(truth, scores)
        precision.plot(x, y, label=each.candidate.name)
    roc.set(xlabel="false positive rate", ylabel="recall", title="ROC (area); points: each policy")
    precision.set(xlabel="recall", ylabel="precision", title="precision and recall")
    for axes in (roc, precision):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return _picture(figure)


def _area(measured: Measured) -> float:
    area = measured.out_of_fold.values.get("auroc", math.nan)
    return -1.0 if math.isnan(area) else area


def confusions(tuning: Tuning) -> str:
    """Confusion matrices of the best member and of the choice, out of fold."""
    task, targets = tuning.spec.task, tuning.data.targets
    best = max(
        (m for m in tuning.measured if m.candidate.member is not None),
        key=lambda m: tuning.target.merit(dict(m.out_of_fold.values)),
    )
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, each in zip(figure.subplots(1, 2), (best, tuning.chosen), strict=True):
        assert each.decisions is not None
        if task is Task.CLASSIFICATION:
            labels = [*tuning.spec.labels, "none"]
            chosen = each.decisions.float().argmax(dim=1)
            chosen[each.decisions.sum(dim=1) != 1] = len(labels) - 1
            pair = (targets.float().argmax(dim=1).numpy(), chosen.numpy())
        else:
            labels = list(tuning.spec.labels) if task is Task.PRESENCE else ["no", "yes"]
            pair = (targets.flatten().int().numpy(), each.decisions.flatten().int().numpy())
        table = confusion_matrix(*pair, labels=list(range(len(labels))))
        _heat(axes, table, labels, f"{each.candidate.name}", "d")
        axes.set(xlabel="answer", ylabel="truth")
    return _picture(figure)


def reliability(tuning: Tuning) -> str:
    """Scores against how often they came true, before and after temperatures."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    after = tuning.learned.apply(tuning.outputs)
    for axes, outputs, title in zip(
        figure.subplots(1, 2, sharey=True),
        (tuning.outputs, after),
        ("as the spec has them", "with the fitted temperatures"),
        strict=True,
    ):
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
        for index, name in enumerate(outputs.panel.member_names):
            _reliability_line(axes, outputs, index, name, tuning.spec.task)
        axes.set(xlabel="score", ylabel="share that came true", title=title)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return _picture(figure)


def _reliability_line(axes: Any, outputs: Outputs, index: int, name: str, task: Task) -> None:
    confidence, truth = confidence_and_truth(outputs.scores[index], outputs.targets, task)
    error = calibration_error(confidence, truth)
    place = (confidence * _BINS).long().clamp(max=_BINS - 1)
    points = [
        (float(confidence[place == b].mean()), float(truth[place == b].float().mean()))
        for b in range(_BINS)
        if bool((place == b).any())
    ]
    axes.plot(*zip(*points, strict=True), marker="o", label=f"{name} (ECE {error:.4f})")


def diversities(tuning: Tuning) -> str:
    """How differently pairs of members err."""
    names = tuning.outputs.panel.member_names
    tables = diversity(tuning.outputs.ballot().votes, tuning.data.targets, names)
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, 3), tables.items(), strict=True):
        _heat(axes, np.array(table), names, name.replace("_", " "), ".2f")
    return _picture(figure)


def _heat(axes: Any, table: Any, names: Sequence[str], title: str, form: str) -> None:
    known = table[np.isfinite(table)]
    lowest = min(0.0, float(known.min())) if known.size else 0.0
    highest = float(known.max()) if known.size else 1.0
    axes.imshow(table, cmap="Blues", vmin=lowest, vmax=max(highest, lowest + 1e-9))
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_title(title)
    for row in places:
        for column in places:
            value = table[row][column]
            dark = value - lowest > 0.6 * (highest - lowest)
            color = "white" if dark else "black"
            axes.text(column, row, format(value, form), ha="center", va="center", color=color)


def _picture(figure: Figure) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=90)
    data = base64.b64encode(target.getvalue()).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"
