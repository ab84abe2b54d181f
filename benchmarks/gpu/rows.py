"""What a step writes: one row for each thing that it checked or measured."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

import torch

from .children import ROOT


class Outcome(StrEnum):
    """What became of a row."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    MEASURED = "measured"


class Skipped(Exception):
    """A row cannot be had on this machine; the message says why."""


@dataclass
class Row:
    """One thing that was checked or measured.

    Attributes:
        step: name of the step that it belongs to.
        name: what was checked or measured.
        outcome: whether it passed; a row that only measures has no right or wrong.
        seconds: how long it took.
        detail: for a person: numbers, or the reason of a failure.
        values: the same numbers for a program, with the unit in each name.
        traceback: where a failed row raised its error.
    """

    step: str
    name: str
    outcome: Outcome = Outcome.PASSED
    seconds: float = 0.0
    detail: str = ""
    values: dict[str, float | str] = field(default_factory=dict)
    traceback: str = ""

    def to_json(self) -> str:
        """Write the row as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read a line that `to_json` wrote."""
        content = json.loads(line)
        return cls(**{**content, "outcome": Outcome(content["outcome"])})


@dataclass
class Step:
    """A running step: where it computes, and the rows that it has written.

    Attributes:
        name: name of the step.
        device: where members run.
        folder: an empty folder for the step's files.
        output: a file to which each row is added at once; None: rows are only kept in `rows`.
        rows: the rows so far.
    """

    name: str
    device: torch.device
    folder: Path
    output: Path | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether members run on a GPU. Sizes are tiny where they do not."""
        return self.device.type == "cuda"

    @contextmanager
    def row(self, name: str, *, measures: bool = False) -> Iterator[Row]:
        """Write a row for what the ``with`` block does. An error in the block fails the row only.

        Args:
            name: what is checked or measured.
            measures: whether the row has no right or wrong.
        """
        row = Row(self.name, name, Outcome.MEASURED if measures else Outcome.PASSED)
        started = time.perf_counter()
        try:
            yield row
        except Skipped as reason:
            row.outcome, row.detail = Outcome.SKIPPED, str(reason)
        except Exception as error:
            row.outcome = Outcome.FAILED
            row.detail = f"{type(error).__name__}: {error}"
            row.traceback = traceback.format_exc().replace(f"{ROOT}/", "")
        row.seconds = round(time.perf_counter() - started, 2)
        self.rows.append(row)
        if self.output is not None:
            with self.output.open("a", encoding="utf-8") as file:
                file.write(row.to_json() + "\n")
