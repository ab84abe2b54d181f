"""The run stage: runs on each sample all members that its request chose, or as few as decide it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .base.errors import busy
from .decisions.choosing import Choice
from .engine.member_inputs import Input
from .engine.member_scores import MemberScores
from .engine.runtime import Runtime
from .engine.score_cache import CachedScores, ScoreCache, merge_cached
from .observability.timeline import MemberCall
from .policies import Outcome, combine_lazily, joined
from .stages import Decoded


def run_chosen_members(
    runtime: Runtime,
    cache: ScoreCache | None,
    requests: Sequence[Decoded],
    *,
    arrived: float,
    end: float,
) -> MemberScores:
    """Run for each sample all members that its request chose, and merge in the cached scores.

    Args:
        runtime: the members.
        cache: the score cache, if the deployment has one; new scores are stored in it.
        requests: the requests of the batch.
        arrived: when the batch arrived, in ``time.monotonic`` seconds; deadlines count from it.
        end: the time of ``time.monotonic`` from which on no further micro-batch begins.

    Raises:
        MemberError: memory is too short for a single sample.
    """
    inputs = [each for request in requests for each in request.samples.inputs]
    members_of_sample: list[Sequence[bool]] = []
    deadlines: list[float | None] = []
    for request in requests:
        choice, num_samples = request.accepted.choice, len(request.samples.inputs)
        allowed_ms = choice.deadline_ms
        deadline = None if allowed_ms is None else arrived + allowed_ms / 1000
        deadlines += [deadline] * num_samples
        members_of_sample += [choice.chosen_flags] * num_samples
    # repeat_interleave would wake torch's own threads for a handful of numbers.
    num_members = len(runtime.spec.members)
    selected = torch.tensor(members_of_sample, dtype=torch.bool).reshape(-1, num_members).T
    if cache is None:
        return runtime.run(inputs, selected=selected, deadlines=deadlines, end=end)
    return _run_uncached(runtime, cache, requests, inputs, selected, deadlines, end)


def _run_uncached(
    runtime: Runtime,
    cache: ScoreCache,
    requests: Sequence[Decoded],
    inputs: Sequence[Input],
    selected: Tensor,
    deadlines: Sequence[float | None],
    end: float,
) -> MemberScores:
    """Run members on the samples without cached scores, and store what they give in the cache."""
    cached: dict[int, CachedScores] = {}
    keys: dict[int, bytes] = {}
    first = 0
    for request in requests:
        cached |= {first + position: each for position, each in request.samples.cached.items()}
        keys |= {first + position: key for position, key in request.samples.keys.items()}
        first += len(request.samples.inputs)
    uncached = [column for column in range(len(inputs)) if column not in cached]
    computed = runtime.run(
        [inputs[column] for column in uncached],
        selected=selected[:, uncached],
        deadlines=[deadlines[column] for column in uncached],
        end=end,
    )
    for position, column in enumerate(uncached):
        if column in keys:
            cache.put(keys[column], computed, position)
    return merge_cached(computed, uncached, cached)


def run_lazily(
    runtime: Runtime,
    choice: Choice,
    inputs: Sequence[Input],
    end: float,
    calls: list[MemberCall],
) -> Outcome:
    """Run members one after the other, until the policy's decision on every sample is certain.

    The fastest members run first, unless the policy prescribes an order.

    Args:
        runtime: the members.
        choice: the policy and its members; its `lazy` must be true.
        inputs: N inputs, as `Runtime.run` takes them.
        end: the time of ``time.monotonic`` from which on no further micro-batch begins.
        calls: the list to which the members' calls are appended.

    Raises:
        BusyError: the end came before the last micro-batch began.
        MemberError: a member failed or gave NaN; the caller can run all members instead.
    """
    order = None
    if choice.policy.name != "cascade":
        seconds = [runtime.seconds[member] for member in choice.members]
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
    outcomes = []
    micro_batch = runtime.spec.runtime.micro_batch
    for start in range(0, len(inputs), micro_batch):
        if start and time.monotonic() > end:
            raise busy()
        part = inputs[start : start + micro_batch]
        batch = runtime.inputs(part, calls)
        outcomes.append(
            combine_lazily(
                choice.policy,
                choice.chosen_panel,
                lambda member, rows, batch=batch: batch.scores(  # type: ignore[misc]
                    choice.members[member], rows
                ),
                num_samples=len(part),
                order=order,
            )
        )
    return joined(outcomes)
