"""Print the metrics of members and policies, and the result of tuning, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metrics import Metrics
    from .tune import Tuning

# Headings of the metrics that fit 80 columns; report.html and report.json have all metrics.
_HEADINGS = {
    "recall": "recall",
    "precision": "prec.",
    "specificity": "spec.",
    "f1": "F1",
    "accuracy": "acc.",
    "coverage": "cover",
    "auroc": "AUROC",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}
_COUNT_HEADINGS = {"false_negatives": "FN", "false_positives": "FP"}


def print_tuning(tuning: Tuning) -> None:
    """Print every candidate, the chosen policy, and what is guaranteed of it."""
    print_metrics(
        {each.candidate.name: each.out_of_fold for each in tuning.measured},
        f"{tuning.spec.name}, {tuning.target}: cross-validation on the "
        f"{len(tuning.development.targets)} images that are not held out",
        mark=tuning.chosen.candidate.name,
    )
    for each in tuning.calibrations:
        if each.improves:
            print(
                f"calibration of {each.member}: temperature {each.temperature:.3f}, expected "
                f"calibration error {each.before['ece']:.4f} -> {each.after['ece']:.4f}"
            )
    point, target = tuning.operating_point, tuning.target
    print(f"chosen: {point.text}")
    if point.guarantee is not None and point.guarantee.holds:
        print(point.guarantee.statement())
    elif point.guarantee is not None:
        print(point.guarantee)
        print("nothing is written; add images, or ask for less with --target or --confidence")
    print(
        f"on the {len(tuning.held_out.targets)} held-out images: "
        f"{target.metric} {_with_interval(point.held_out, target.metric)}, "
        f"{target.complement} {_with_interval(point.held_out, target.complement)}"
    )
    for note in tuning.notes:
        print(f"note: {note}")


def print_metrics(metrics: Mapping[str, Metrics], title: str, mark: str | None = None) -> None:
    """Print a table of metrics.

    Args:
        metrics: name of a row -> its metrics.
        title: text above the table.
        mark: name of the row that stands out; None: no row does.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Names come from specs and folders; as `Text` they are not read as rich's markup.
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    first = next(iter(metrics.values()))
    names = [name for name in _HEADINGS if name in first.values]
    counts = [name for name in _COUNT_HEADINGS if name in first.counts]
    for name in names:
        table.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    for name in counts:
        table.add_column(_COUNT_HEADINGS[name], justify="right", no_wrap=True)
    for row, each in metrics.items():
        cells = [f"{each.values[name]:.3f}" for name in names]
        cells += [str(each.counts[name]) for name in counts]
        table.add_row(Text(row), *cells, style="bold green" if row == mark else None)
    Console().print(table)


def _with_interval(metrics: Metrics, name: str) -> str:
    text = f"{metrics.values[name]:.4f}"
    if name in metrics.intervals:
        low, high = metrics.intervals[name]
        text += f" (95 %: {low:.3f} to {high:.3f})"
    return text
