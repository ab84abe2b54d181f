"""Predictions as a CSV file, which a spreadsheet can open without running anything in it."""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, TextIO

Row = dict[str, Any]

_FIXED = ("sample", "combined", "score", "error")
_ASKED_FOR = (
    *("abstained", "top_k", "scores", "standard_deviation", "quantile_05", "quantile_95"),
    *("uncertainty", "smoothed", "members_used", "failed_members", "late_members"),
)
"""Columns behind those of the members, each there if any row has it."""

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""Spreadsheets take a cell that begins with one of these for a formula (OWASP, CSV injection);
the last four are the wide forms of the first four."""


def write_csv(rows: Iterator[Row], file: TextIO) -> None:
    """Write predictions as a table with one column for each member that answered any of them.

    The header names the members, and which members answer is known only when all rows are there:
    an image that cannot be read has none, and a member can fail on some images. So the rows wait in
    a temporary file, which holds any number of them. What came before a failure is written too.

    Args:
        rows: elements of ``predictions``.
        file: opened as `csv` asks, without a translation of line ends.
    """
    orders: set[tuple[str, ...]] = set()
    asked_for: set[str] = set()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as waiting:
        try:
            for row in rows:
                orders.add(tuple(row.get("members", ())))
                asked_for.update(row)
                waiting.write(json.dumps(row) + "\n")
        finally:
            if waiting.tell():
                waiting.seek(0)
                members = _in_order(orders)
                further = [name for name in _ASKED_FOR if name in asked_for]
                header = [*_FIXED, *(_column(name) for name in members), *further]
                writer = csv.writer(file)
                writer.writerow(map(_cell, header))
                for line in waiting:
                    writer.writerow(map(_cell, _cells(json.loads(line), members, further)))


def text_of(answer: Row) -> str:
    """What an answer says, for people; empty where neither labels nor values were asked for."""
    if "values" in answer:
        return ", ".join(f"{label} {value:.4g}" for label, value in answer["values"].items())
    if not answer.keys() & {"label", "labels"}:
        return ""
    return ", ".join(answer.get("labels", [])) or str(answer.get("label") or "none")


def _in_order(orders: Iterable[tuple[str, ...]]) -> list[str]:
    """All members, in the order of the deployment, of which each row has a part."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for order in sorted(orders):
        for name in order:
            sorter.add(name)
        for before, after in itertools.pairwise(order):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        # Versions of the model that answered one after the other name the members differently.
        return sorted({name for order in orders for name in order})


def _column(member: str) -> str:
    """A member's column; names of members hold no spaces, so this one is free."""
    return f"member {member}" if member in (*_FIXED, *_ASKED_FOR) else member


def _cells(row: Row, members: Iterable[str], further: Iterable[str]) -> Iterator[Any]:
    error = row.get("error")
    answers = row.get("members", {})
    yield row.get("sample", "")
    yield "" if error else text_of(row)
    yield row.get("score", "")
    yield error["message"] if error else ""
    for name in members:
        yield text_of(answers[name]) if name in answers else ""
    for name in further:
        value = row.get(name, "")
        yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> Any:
    """Numbers as they are; text that no spreadsheet takes for a formula, and that is Unicode."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA) else text
