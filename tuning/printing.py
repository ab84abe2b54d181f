"""What tuning found, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metrics import Metrics
    from .tune import Tuning

# Those that fit 80 columns; report.html and report.json have all.
_COLUMNS = {
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
_COUNTS = {"false_negatives": "FN", "false_positives": "FP"}


def print_tuning(found: Tuning) -> None:
    """Every candidate, the choice, and what to expect of it."""
    print_metrics(
        {each.candidate.name: each.out_of_fold for each in found.measured},
        f"{found.spec.name}, {found.target}: each at its best operating point, out of fold",
        mark=found.chosen.candidate.name,
    )
    for each in found.calibrations:
        if each.temperature != 1:
            print(
                f"calibration of {each.member}: temperature {each.temperature:.3f}, expected "
                f"calibration error {each.before['ece']:.4f} -> {each.after['ece']:.4f}"
            )
    metric = found.target.metric
    if found.reached:
        print(f"chosen: {found.chosen.text}")
        print(f"  {metric} {_with_interval(found.chosen.out_of_fold, metric)} out of fold")
    else:
        missed = found.target.shortfall(dict(found.chosen.out_of_fold.values))
        print(
            f"no policy reaches {found.target} out of fold; {found.chosen.text} comes closest and "
            f"misses it by {missed:.4f}"
        )
    for note in found.notes:
        print(f"  note: {note}")
    if found.expected is not None:
        other = found.target.complement
        print(
            "  on new images expect "
            f"{metric} {_with_interval(found.expected.metrics, metric)}, "
            f"{other} {_with_interval(found.expected.metrics, other)}:\n"
            "  all of tuning, the choice included, repeated without the images that it is measured "
            "on;\n  it chose "
            + ", ".join(f"{name} {times}x" for name, times in found.expected.chosen.items())
        )
        if found.reached and not found.target.meets(dict(found.expected.metrics.values)):
            print(
                f"  note: that misses {found.target}: the best of many candidates looks better "
                "than it is.\n  Aim higher, or give more labelled images"
            )


def print_metrics(found: Mapping[str, Metrics], title: str, mark: str | None = None) -> None:
    """A table of metrics, a row for each name.

    Args:
        found: name -> metrics.
        title: above the table.
        mark: the row that stands out.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Names come from specs and folders, and may hold what rich takes for markup.
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    first = next(iter(found.values()))
    names = [name for name in _COLUMNS if name in first.values]
    counts = [name for name in _COUNTS if name in first.counts]
    for name in names:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for name in counts:
        table.add_column(_COUNTS[name], justify="right", no_wrap=True)
    for row, each in found.items():
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
