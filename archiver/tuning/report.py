"""A report that a person can read: one HTML file with its pictures inside, and report.json."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from ...handlers.tasks import Task
from .figures import calibration_error, confidence_and_truth, diversity
from .fitting import Outputs
from .selection import Measured
from .tuning import Tuning

mpl.use("Agg")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
tr.chosen { background: #e8f4e8; font-weight: 600; }
small { color: #666; } img { max-width: 100%; }
"""
_BINS = 10
_CURVES = 6


def write_report(tuning: Tuning, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json``.

    Returns:
        The HTML file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report_json(tuning), indent=2) + "\n")
    page = folder / "report.html"
    page.write_text(_page(tuning), encoding="utf-8")
    return page


def report_json(tuning: Tuning) -> dict[str, Any]:
    """Every figure, for programs. What is not defined is null."""
    return {
        "ensemble": {"name": tuning.spec.name, "version": tuning.spec.version},
        "data": {
            "name": tuning.data.name,
            "images": len(tuning.data.paths),
            "digest": tuning.data.digest,
        },
        "target": str(tuning.target),
        "reached": tuning.reached,
        "chosen": tuning.chosen.text,
        "temperatures": dict(
            zip(tuning.outputs.panel.member_names, tuning.learned.temperatures, strict=True)
        ),
        "candidates": [
            {
                "name": each.candidate.name,
                "policy": each.text,
                "out_of_fold": _finite(each.out_of_fold.values),
                "intervals": each.out_of_fold.intervals,
                "counts": each.out_of_fold.counts,
                "in_sample": _finite(each.in_sample.values),
            }
            for each in tuning.measured
        ],
    }


def _finite(values: Any) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _page(tuning: Tuning) -> str:
    spec, chosen = tuning.spec, tuning.chosen
    verdict = (
        "reaches the target out of fold"
        if tuning.reached
        else f"comes closest, but misses the target by "
        f"{tuning.target.shortfall(dict(chosen.out_of_fold.values)):.4f} out of fold"
    )
    parts = [
        f"<h1>{html.escape(spec.name)} {spec.version}: {html.escape(str(tuning.target))}</h1>",
        f"<p>Chosen: <b><code>{html.escape(chosen.text)}</code></b>, which {verdict}.</p>",
        f"<p>Data: {html.escape(tuning.data.name)}, {len(tuning.data.paths)} images, "
        f"<small>{tuning.data.digest}</small></p>",
        "<h2>Members and policies</h2>",
        "<p>Every row at the operating point that serves the target best. Figures are out of fold: "
        "of images that the operating point, the temperatures and the fitted models did not see. "
        "In brackets 95 % intervals (Wilson).</p>",
        _table(tuning),
    ]
    if spec.task in (Task.PRESENCE, Task.MULTILABEL):
        parts += ["<h2>Curves</h2>", _curves(tuning)]
    if spec.task is not Task.REGRESSION:
        parts += ["<h2>Confusion</h2>", _confusions(tuning)]
        parts += ["<h2>Calibration</h2>", _reliability(tuning)]
        parts += [
            "<h2>Diversity</h2>",
            "<p>Members that err on different images gain most from being combined: low Q and "
            "correlation, high disagreement (Kuncheva and Whitaker 2003).</p>",
            _diversity(tuning),
        ]
    body = "\n".join(parts)
    title = html.escape(f"{spec.name} {spec.version}: tuning")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def _table(tuning: Tuning) -> str:
    first = tuning.measured[0].out_of_fold
    names, counts = list(first.values), list(first.counts)
    head = "".join(f"<th>{html.escape(n.replace('_', ' '))}</th>" for n in ("", *names, *counts))
    rows = []
    for each in tuning.measured:
        cells = [f"<td><code>{html.escape(each.text)}</code></td>"]
        for name in names:
            value, interval = each.out_of_fold.values[name], each.out_of_fold.intervals.get(name)
            spread = f"<br><small>{interval[0]:.3f}-{interval[1]:.3f}</small>" if interval else ""
            cells.append(f"<td>{value:.4f}{spread}</td>")
        cells += [f"<td>{each.out_of_fold.counts[name]}</td>" for name in counts]
        mark = " class='chosen'" if each is tuning.chosen else ""
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _curves(tuning: Tuning) -> str:
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


def _confusions(tuning: Tuning) -> str:
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


def _reliability(tuning: Tuning) -> str:
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


def _diversity(tuning: Tuning) -> str:
    names = tuning.outputs.panel.member_names
    tables = diversity(tuning.outputs.ballot().votes, tuning.data.targets, names)
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, 3), tables.items(), strict=True):
        _heat(axes, np.array(table), names, name.replace("_", " "), ".2f")
    return _picture(figure)


def _heat(axes: Any, table: Any, names: Sequence[str], title: str, form: str) -> None:
    axes.imshow(table, cmap="Blues")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_title(title)
    darkest = np.nanmax(table) if np.isfinite(table).any() else 1
    for row in places:
        for column in places:
            value = table[row][column]
            color = "white" if value > 0.6 * darkest else "black"
            axes.text(column, row, format(value, form), ha="center", va="center", color=color)


def _picture(figure: Figure) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=90)
    data = base64.b64encode(target.getvalue()).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"
