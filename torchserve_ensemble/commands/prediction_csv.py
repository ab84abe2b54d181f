"""Predictions as a CSV file, which a spreadsheet can open without running anything in it.

A column is named by the keys that lead to its value in the JSON answer, joined by dots
(``members.cnn.label``), as `pandas.json_normalize` names it.
"""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, TextIO

Row = dict[str, Any]
Column = tuple[str, ...]
"""The keys that lead to a value."""

_ORDER = (
    *("sample", "label", "labels", "score", "values", "error", "members", "abstained", "top_k"),
    *("scores", "standard_deviation", "quantile_05", "quantile_95", "uncertainty", "smoothed"),
    *("members_used", "failed_members", "late_members"),
)
"""Keys of a prediction, in the order of their columns; further ones follow in alphabetic order."""

_ALWAYS: tuple[Column, ...] = (("sample",), ("error", "message"))
"""Columns that every table has, even if all their cells are empty."""

_FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters that make a spreadsheet read a cell as a formula (OWASP, CSV injection); the
last four are the full-width forms of the first four."""


def write_csv(rows: Iterable[Row], file: TextIO) -> None:
    """Write predictions as a table that has a column for every value of any of them.

    The header comes first in the file, and which columns there are is known only after the last
    prediction: one for an unreadable image has no members, and members can fail on some images. So
    the predictions wait in a temporary file, which holds any number of them. If producing them
    fails, those that came before are written.

    Args:
        rows: elements of ``predictions``.
        file: opened as `csv` asks, without a translation of line ends.
    """
    columns: dict[Column, None] = {}
    member_orders: set[tuple[str, ...]] = set()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as waiting:
        try:
            for row in rows:
                columns.update(dict.fromkeys(_flattened(row)))
                member_orders.add(tuple(row.get("members", ())))
                waiting.write(json.dumps(row) + "\n")
        finally:
            if waiting.tell():
                waiting.seek(0)
                header = _sorted({**dict.fromkeys(_ALWAYS), **columns}, _merged(member_orders))
                writer = csv.writer(file)
                writer.writerow(_safe(".".join(column)) for column in header)
                for line in waiting:
                    values = _flattened(json.loads(line))
                    writer.writerow(_cell(values.get(column)) for column in header)


def _flattened(content: Mapping[str, Any], keys: Column = ()) -> dict[Column, Any]:
    """Return every value of nested objects, under the keys that lead to it."""
    values: dict[Column, Any] = {}
    for key, value in content.items():
        if key == "labels" and "label" in content:
            # For a task that chooses one label, labels repeats it.
            continue
        if isinstance(value, Mapping):
            values.update(_flattened(value, (*keys, key)))
        else:
            values[*keys, key] = value
    return values


def _sorted(columns: Iterable[Column], members: list[str]) -> list[Column]:
    """Sort columns by `_ORDER`; those of members by the order of the members."""

    def position(column: Column) -> tuple[int, str, int]:
        first = column[0]
        place = _ORDER.index(first) if first in _ORDER else len(_ORDER)
        return (
            place,
            "" if first in _ORDER else first,
            members.index(column[1]) if first == "members" else 0,
        )

    return sorted(columns, key=position)


def _merged(orders: Iterable[tuple[str, ...]]) -> list[str]:
    """Return all members in the ensemble's order, from predictions that each lack some of them."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for order in sorted(orders):
        for name in order:
            sorter.add(name)
        for before, after in itertools.pairwise(order):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        # The default version changed meanwhile, and the new one has its members in another order.
        return sorted({name for order in orders for name in order})


def _cell(value: Any) -> str | int | float:
    """Return the text or number of a cell: empty for null, JSON for lists and truth values."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _safe(value)
    if isinstance(value, bool | list):
        return _safe(json.dumps(value, ensure_ascii=False))
    number: int | float = value
    return number


def _safe(text: str) -> str:
    """Return Unicode text that no spreadsheet takes for a formula."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
