"""When the stages of a batch and the calls of its members began and ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class StageName(StrEnum):
    """The stages whose time is measured, in their order."""

    PARSE = "parse"
    DECODE = "decode"
    MEMBERS = "members"
    POLICY = "policy"
    WRITE = "write"


class Stage(NamedTuple):
    """One stage of a batch. Times are in ``time.monotonic`` seconds."""

    name: StageName
    start: float
    end: float


class MemberCall(NamedTuple):
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

    def stage(self, name: StageName) -> StageTimer:
        """Measure what happens inside of this context as a part of a stage."""
        return StageTimer(self.stages, name)


class StageTimer:
    """Measures one stage; a class takes half the time of a generator with ``contextmanager``."""

    __slots__ = ("_name", "_stages", "_start")

    def __init__(self, stages: list[Stage], name: StageName) -> None:
        """Keep where the stage is to be added.

        Args:
            stages: the list of a timeline.
            name: the stage.
        """
        self._stages = stages
        self._name = name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._stages.append(Stage(self._name, self._start, time.monotonic()))
