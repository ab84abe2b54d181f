"""What a check reports: a finding, and how serious it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a finding is: with a problem, something does not work or anybody gets in."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: how serious it is.
        what: the result, as a sentence for people.
        remedy: what to do about it; empty if there is nothing to do.
    """

    level: Level
    what: str
    remedy: str = ""
