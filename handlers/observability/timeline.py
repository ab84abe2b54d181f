"""When the stages of a batch and the calls of its members began and ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class StageName(StrEnum):
    """The stages whose time is measured, in their order."""

    PARSE = "parse"
    DECODE = "decode"
    MEMBERS = "members"
    POLICY = "policy"
    WRITE = "write"


@dataclass(frozen=True)
class Stage:
    """One stage of a batch. Times are in ``time.monotonic`` seconds."""

    name: StageName
    start: float
    end: float


@dataclass(frozen=True)
class MemberCall:
    """One call of an executable.

    Attributes:
        members: positions of the members that it computed.
        num_samples: number of samples that it computed.
        start: when it began, in ``time.monotonic`` seconds.
        end: when it ended.
    """

    members: tuple[int, ...]
    num_samples: int
    start: float
    end: float


@dataclass
class BatchTimeline:
    """What one batch did when.

    Attributes:
        arrived: when the batch reached the worker, in ``time.monotonic`` seconds.
        stages: the stages; a batch of lazy and other requests runs some of them several times.
        calls: the calls of members.
    """

    arrived: float
    stages: list[Stage] = field(default_factory=list)
    calls: list[MemberCall] = field(default_factory=list)

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Measure what happens inside of this context as a part of a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages.append(Stage(name, start, time.monotonic()))
