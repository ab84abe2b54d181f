"""Run members on the decoded samples of a batch: all of them, or no more than a policy needs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base.errors import busy
from .decisions.choice import Choice
from .decoding.batch import DecodedSample
from .engine.runtime import Input, MemberScores, Runtime
from .engine.score_cache import ScoreCache, with_cached
from .policies import Outcome, combine_lazily, joined


@dataclass(frozen=True)
class RunningTask:
    """The decoded samples of one request, and what its client chose.

    Attributes:
        samples: N.
        choice: policy, members and deadline.
    """

    samples: Sequence[DecodedSample]
    choice: Choice


def run_members(
    tasks: Sequence[RunningTask],
    runtime: Runtime,
    cache: ScoreCache | None,
    *,
    start: float,
    end: float,
) -> MemberScores:
    """Run the members that each request asks on its samples, all requests together.

    Members do not run for samples whose scores are cached; what is computed is kept in the cache.

    Args:
        tasks: the requests.
        runtime: the members.
        cache: scores of earlier samples, if the deployment keeps them.
        start: when the batch arrived, in ``time.monotonic`` seconds; deadlines count from it.
        end: the time from which on no further micro-batch begins.

    Returns:
        Scores of the samples of all tasks, one task after the other.

    Raises:
        MemberError: the device has no memory for even a single sample.
    """
    samples = [sample for task in tasks for sample in task.samples]
    deadlines: list[float | None] = []
    selected: list[Sequence[bool]] = []
    for task in tasks:
        allowed = task.choice.deadline_ms
        deadline = None if allowed is None else start + allowed / 1000
        deadlines += [deadline] * len(task.samples)
        selected += [task.choice.selected] * len(task.samples)
    # Not by repeat_interleave, which would wake torch's own threads for a handful of numbers.
    asked = torch.tensor(selected, dtype=torch.bool).reshape(-1, len(runtime.spec.members)).T
    columns = [column for column, sample in enumerate(samples) if sample.cached is None]
    computed = runtime.run(
        [_input(samples[column]) for column in columns],
        asked=_columns(asked, columns),
        deadlines=[deadlines[column] for column in columns],
        end=end,
    )
    if cache is None:
        return computed
    for position, column in enumerate(columns):
        key = samples[column].cache_key
        if key is not None:
            cache.keep(key, computed, position)
    cached = {
        column: sample.cached for column, sample in enumerate(samples) if sample.cached is not None
    }
    return with_cached(computed, columns, cached)


def run_lazily(
    choice: Choice, inputs: Sequence[Input], runtime: Runtime, *, end: float = math.inf
) -> Outcome:
    """Run as few members as decide each of N samples, and combine them.

    Members run from the cheapest on, where the policy leaves the order open.

    Args:
        choice: its policy can stop early (`Choice.lazy`).
        inputs: N, as `Runtime.run` takes them.
        runtime: the members.
        end: the time of ``time.monotonic`` from which on no further micro-batch begins.

    Raises:
        BusyError: samples were left at the end.
        MemberError: a member failed, or gave NaN; run all members instead.
    """
    policy, members = choice.policy, choice.members
    order = None
    if policy.name != "cascade":
        seconds = [runtime.seconds[member] for member in members]
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
    outcomes = []
    size = runtime.spec.runtime.micro_batch
    for first in range(0, len(inputs), size):
        if first and time.monotonic() > end:
            raise busy()
        micro_batch = inputs[first : first + size]
        batch = runtime.inputs(micro_batch)
        outcomes.append(
            combine_lazily(
                policy,
                choice.selected_panel,
                lambda member, rows, batch=batch: batch.scores(  # type: ignore[misc]
                    members[member], rows
                ),
                samples=len(micro_batch),
                order=order,
            )
        )
    return joined(outcomes)


def inputs_of(samples: Sequence[DecodedSample]) -> list[Input]:
    """The inputs of samples that are not cached."""
    return [_input(sample) for sample in samples]


def _input(sample: DecodedSample) -> Input:
    assert sample.input is not None
    return sample.input


def _columns(asked: Tensor, columns: Sequence[int]) -> Tensor:
    return asked if len(columns) == asked.shape[1] else asked[:, list(columns)]
