"""Write a report of tuning: one HTML file that contains its pictures, and report.json."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..handlers.base.tasks import Task
from .metrics import Metrics, diversity
from .plots import candidate_curves, class_curves, confusions, diversities, reliability
from .tune import Tuning

# Tables scroll in a box of their own, so that the page itself never does. The first column stays in
# place and breaks long policies.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em;
  overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 13px; }
td, th { border-bottom: 1px solid #ddd; padding: .3em .45em; text-align: right;
  overflow-wrap: normal; }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  min-width: 9em; max-width: 14em; overflow-wrap: anywhere; }
tr.chosen td { background: #e8f4e8; font-weight: 600; }
p.verdict { border-left: 4px solid #888; padding-left: .8em; }
p.guaranteed { border-color: #2a7d2a; } p.not-guaranteed { border-color: #b00020; }
small { color: #666; } td small { white-space: nowrap; } img { max-width: 100%; }
@media (max-width: 40em) { body { margin: 1em auto; } td:first-child { max-width: 8em; } }
"""
_VIEWPORT = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
_HEADINGS = {
    "true_positives": "TP",
    "false_positives": "FP",
    "false_negatives": "FN",
    "true_negatives": "TN",
    "false_positive_rate": "FPR",
    "average_precision": "AP",
    "auroc": "AUROC",
    "f1": "F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}


def write_report(tuning: Tuning, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder, which is made if missing.

    Returns:
        The HTML file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report_json(tuning), indent=2) + "\n")
    page = folder / "report.html"
    page.write_text(_page(tuning), encoding="utf-8")
    return page


def report_json(tuning: Tuning) -> dict[str, Any]:
    """Collect every number of the report, for programs. A metric that is not defined is null."""
    point = tuning.operating_point
    return {
        "ensemble": {"name": tuning.spec.name, "version": tuning.spec.version},
        "data": {
            "name": tuning.data.name,
            "images": len(tuning.data.paths),
            "held_out_images": len(tuning.held_out.targets),
            "digest": tuning.data.digest,
        },
        "target": str(tuning.target),
        "reached": tuning.reached,
        "guarantee": None if point.guarantee is None else point.guarantee.to_json(),
        "notes": tuning.notes,
        "chosen": point.text,
        "held_out": {
            "metrics": _with_null(point.held_out.values),
            "intervals": point.held_out.intervals,
            "counts": point.held_out.counts,
        },
        "temperatures": dict(
            zip(tuning.development.panel.member_names, tuning.fitted.temperatures, strict=True)
        ),
        "calibration": [asdict(each) | {"is_used": each.improves} for each in tuning.calibrations],
        "diversity": _diversity_json(tuning),
        "candidates": [
            {
                "name": each.candidate.name,
                "policy": each.text,
                "out_of_fold": _with_null(each.out_of_fold.values),
                "intervals": each.out_of_fold.intervals,
                "counts": each.out_of_fold.counts,
                "in_sample": _with_null(each.in_sample.values),
            }
            for each in tuning.measured
        ],
    }


def _diversity_json(tuning: Tuning) -> dict[str, Any] | None:
    """The tables of `diversity`, with rows and columns in the order of ``members``."""
    if tuning.spec.task is Task.REGRESSION:
        return None
    outputs = tuning.development
    names = outputs.panel.member_names
    tables = diversity(outputs.ballot().votes, outputs.targets, names)
    return {"members": names} | {
        name: [[None if math.isnan(v) else v for v in row] for row in table]
        for name, table in tables.items()
    }


def _with_null(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _page(tuning: Tuning) -> str:
    spec, point = tuning.spec, tuning.operating_point
    parts = [
        f"<h1>{html.escape(spec.name)} {spec.version}: {html.escape(str(tuning.target))}</h1>",
        f"<p>Chosen: <b><code>{html.escape(point.text)}</code></b></p>",
        *_verdict(tuning),
        f"<p>Data: {html.escape(tuning.data.name)}, {len(tuning.data.paths)} images, "
        f"<small>{tuning.data.digest}</small></p>",
        *(f"<p><b>Note:</b> {html.escape(note)}.</p>" for note in tuning.notes),
        "<h2>On held-out images</h2>",
        f"<p>The metrics of the chosen policy on the {len(tuning.held_out.targets)} held-out "
        "images. Nothing was fitted on them; where there is a guarantee, they set the threshold. "
        f"Small: 95 % intervals.</p>{_table([('chosen', point.held_out)])}",
        "<h2>Members and policies</h2>",
        f"<p>Metrics by cross-validation on the other {len(tuning.development.targets)} images: of "
        "images that the threshold, the temperatures and the fitted models did not see. Every row "
        "has the threshold that serves the target best. The best of many rows looks better than it "
        "is, so these metrics choose the policy and promise nothing. Small: 95 % intervals, "
        "Wilson's for shares of independent images, else by the bootstrap.</p>",
        _table([(m.text, m.out_of_fold) for m in tuning.measured], tuning.chosen.text),
    ]
    if spec.task is Task.CLASSIFICATION:
        parts += ["<h2>Curves</h2>", class_curves(tuning)]
    elif spec.task is not Task.REGRESSION:
        parts += ["<h2>Curves</h2>", candidate_curves(tuning)]
    if spec.task is not Task.REGRESSION:
        parts += ["<h2>Confusion</h2>", confusions(tuning), "<h2>Calibration</h2>"]
        if tuning.calibrations:
            parts.append(_calibration_table(tuning))
        parts += [
            "<p>The members' scores on the held-out images.</p>",
            reliability(tuning),
            "<h2>Diversity</h2>",
            "<p>Members that err on different images gain most from being combined: low Q and "
            "correlation, high disagreement (Kuncheva and Whitaker 2003).</p>",
            diversities(tuning),
        ]
    body = "\n".join(parts)
    title = html.escape(f"{spec.name} {spec.version}: tuning")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'>{_VIEWPORT}<title>{title}</title>"
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def _verdict(tuning: Tuning) -> list[str]:
    guarantee = tuning.operating_point.guarantee
    if guarantee is None:
        return []
    kind = "guaranteed" if guarantee.holds else "not-guaranteed"
    text = guarantee.statement() if guarantee.holds else str(guarantee)
    return [f"<p class='verdict {kind}'>{html.escape(text)}</p>"]


def _table(rows: Iterable[tuple[str, Metrics]], chosen: str | None = None) -> str:
    """A table of metrics; the row of the chosen policy stands out."""
    rows = list(rows)
    first = rows[0][1]
    names, counts = list(first.values), list(first.counts)
    headings = ("", *(_HEADINGS.get(n, n.replace("_", " ")) for n in (*names, *counts)))
    head = "".join(f"<th>{html.escape(each)}</th>" for each in headings)
    body = []
    for text, metrics in rows:
        cells = [f"<td><code>{html.escape(text)}</code></td>"]
        for name in names:
            value, interval = metrics.values[name], metrics.intervals.get(name)
            spread = f"<br><small>{interval[0]:.3f}-{interval[1]:.3f}</small>" if interval else ""
            cells.append(f"<td>{value:.4f}{spread}</td>")
        cells += [f"<td>{metrics.counts[name]}</td>" for name in counts]
        mark = " class='chosen'" if text == chosen else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return _scrolling(f"<table><tr>{head}</tr>{''.join(body)}</table>")


def _calibration_table(tuning: Tuning) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(each.member)}</td><td>{each.temperature:.4f}</td>"
        f"<td>{'yes' if each.improves else 'no'}</td>"
        f"<td>{each.before['ece']:.4f}</td><td>{each.after['ece']:.4f}</td>"
        f"<td>{each.before['nll']:.4f}</td><td>{each.after['nll']:.4f}</td></tr>"
        for each in tuning.calibrations
    )
    return (
        "<p>Expected calibration error (ECE, 15 bins) and negative log likelihood (NLL) by "
        "cross-validation. A temperature is used, and written into the spec, only if it makes "
        "neither of them worse.</p>"
        + _scrolling(
            "<table><tr><th></th><th>temperature</th><th>used</th><th>ECE before</th>"
            f"<th>ECE after</th><th>NLL before</th><th>NLL after</th></tr>{rows}</table>"
        )
    )


def _scrolling(table: str) -> str:
    return f"<div class='table'>{table}</div>"
