"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        level: how bad it is.
        what: what was found, as a sentence for people.
        remedy: what to do about it; empty if there is nothing to do.
    """

    level: Level
    what: str
    remedy: str = ""
