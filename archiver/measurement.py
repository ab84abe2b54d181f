"""The rows of the build's table of engines and precisions, and the table as text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Measurement:
    """One row of the build's table: a way to run one or several members.

    Attributes:
        members: names of the members, separated by commas.
        engine: name of the engine that computes them.
        precision: the precision that they compute in.
        milliseconds: median time for each of `TIMED_BATCH_SIZES`; None if it was not timed.
        difference: largest difference of a score from that of the saved members; None if it was
            not compared.
        outcome: ``chosen``, or the reason for which it was not chosen.
    """

    members: str
    engine: str
    precision: str
    milliseconds: tuple[float, ...] | None = None
    difference: float | None = None
    outcome: str = ""


def table_of(measurements: Iterable[Measurement]) -> str:
    """Return everything that was tried, as a table of plain text."""
    table = Table("member", "engine", "precision", "1 sample", "8 samples", "difference", "")
    for row in measurements:
        milliseconds = [f"{each:.3g} ms" for each in row.milliseconds or ()] or ["", ""]
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        table.add_row(
            row.members, row.engine, row.precision, *milliseconds, difference, row.outcome
        )
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
