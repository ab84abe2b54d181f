"""A report that a person can read: one HTML file with its pictures inside, and report.json."""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..handlers.base.tasks import Task
from .metrics import diversity
from .plots import confusions, curves, diversities, reliability
from .tune import Tuning

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
tr.chosen { background: #e8f4e8; font-weight: 600; }
small { color: #666; } img { max-width: 100%; }
"""


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
        "evidence": None if tuning.evidence is None else asdict(tuning.evidence),
        "notes": tuning.notes,
        "chosen": tuning.chosen.text,
        "temperatures": dict(
            zip(tuning.outputs.panel.member_names, tuning.learned.temperatures, strict=True)
        ),
        "calibration": [asdict(each) for each in tuning.calibrations],
        "expected": _expected_json(tuning),
        "diversity": _diversity_json(tuning),
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


def _expected_json(tuning: Tuning) -> dict[str, Any] | None:
    if tuning.expected is None:
        return None
    return {
        "metrics": _finite(tuning.expected.metrics.values),
        "intervals": tuning.expected.metrics.intervals,
        "chosen_in_folds": tuning.expected.chosen,
    }


def _diversity_json(tuning: Tuning) -> dict[str, Any] | None:
    """Metrics of pairs of members, in the order of ``members``."""
    if tuning.spec.task is Task.REGRESSION:
        return None
    names = tuning.outputs.panel.member_names
    tables = diversity(tuning.outputs.ballot().votes, tuning.data.targets, names)
    return {"members": names} | {
        name: [[None if math.isnan(v) else v for v in row] for row in table]
        for name, table in tables.items()
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
        *(f"<p><b>Note:</b> {html.escape(note)}.</p>" for note in tuning.notes),
        *_expectation(tuning),
        "<h2>Members and policies</h2>",
        "<p>Every row at the operating point that serves the target best. Metrics are out of fold: "
        "of images that the operating point, the temperatures and the fitted models did not see. "
        "Below each its 95 % interval: Wilson's for shares of images, else by the bootstrap.</p>",
        _table(tuning),
    ]
    if spec.task in (Task.PRESENCE, Task.MULTILABEL):
        parts += ["<h2>Curves</h2>", curves(tuning)]
    if spec.task is not Task.REGRESSION:
        parts += ["<h2>Confusion</h2>", confusions(tuning)]
        parts += ["<h2>Calibration</h2>", _calibration_table(tuning), reliability(tuning)]
        parts += [
            "<h2>Diversity</h2>",
            "<p>Members that err on different images gain most from being combined: low Q and "
            "correlation, high disagreement (Kuncheva and Whitaker 2003).</p>",
            diversities(tuning),
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


def _expectation(tuning: Tuning) -> list[str]:
    """What to expect of the choice itself."""
    if tuning.expected is None:
        return []
    known, cells = tuning.expected.metrics, []
    for name, value in known.values.items():
        interval = known.intervals.get(name)
        spread = f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""
        cells.append(f"{html.escape(name.replace('_', ' '))} {value:.4f}{spread}")
    chosen = ", ".join(f"{html.escape(n)} {k}x" for n, k in tuning.expected.chosen.items())
    missed = tuning.reached and not tuning.target.meets(dict(known.values))
    warning = f" <b>That misses {html.escape(str(tuning.target))}.</b>" if missed else ""
    return [
        "<h2>On new images</h2>",
        "<p>The best of many candidates looks better than it is. So all of tuning, the choice "
        "included, was repeated without each fold in turn, and what it chose was measured on that "
        f"fold. That is what to expect of new images:{warning}</p><p>{'; '.join(cells)}.</p>"
        f"<p>Chosen in the folds: {chosen}.</p>",
    ]


def _calibration_table(tuning: Tuning) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(each.member)}</td><td>{each.temperature:.4f}</td>"
        f"<td>{each.before['ece']:.4f}</td><td>{each.after['ece']:.4f}</td>"
        f"<td>{each.before['nll']:.4f}</td><td>{each.after['nll']:.4f}</td></tr>"
        for each in tuning.calibrations
    )
    return (
        "<p>Expected calibration error (ECE, 15 bins) and negative log likelihood (NLL), after "
        "with temperatures fitted on other images. The pictures show temperatures fitted on "
        "all.</p><table><tr><th></th><th>temperature</th><th>ECE before</th><th>ECE after</th>"
        f"<th>NLL before</th><th>NLL after</th></tr>{rows}</table>"
    )
