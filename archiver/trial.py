"""Compares candidates with the saved members, and times them.

The build keeps a candidate if its answers are those of the saved members, and if it is faster than
what would run without it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..handlers.members.compiled import CompiledMembers, load_executable
from ..handlers.members.compiled_record import CompiledExecutable
from ..handlers.members.loading import LoadedMember, difference
from ..handlers.members.timing import seconds_of
from ..handlers.spec import EnsembleSpec
from .candidates import Candidate
from .not_compiled import NotCompiled, OtherAnswersError, converter_errors

TIMED_BATCH_SIZES = (1, 8)
"""Numbers of samples: a request with one image, and a batch of requests."""

MIN_SPEED_UP = 1.1
"""Smaller gains are noise of the timing, and the saved member is simpler."""

_MIN_ROUNDS = 3
_MAX_ROUNDS = 15
_MAX_TIMING_SECONDS = 1.5
"""For each batch size. After `_MIN_ROUNDS`, no round begins that is likely to end later."""


@dataclass(frozen=True)
class VerifiedCandidate:
    """A candidate whose answers are those of the saved members.

    Attributes:
        entry: the candidate's entry in the archive's record.
        saved_outputs: for each of its members the raw outputs of the saved member for the batch
            that the candidate was verified with, float32 (N samples, outputs).
        run: the loaded executable.
    """

    entry: CompiledExecutable
    saved_outputs: Sequence[Tensor]
    run: CompiledMembers


@dataclass(frozen=True)
class Trial:
    """Compares candidates with the saved members of one ensemble.

    Attributes:
        spec: the ensemble.
        loaded: the ensemble's members as they were saved.
        work: the folder in which candidates write their files.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    work: Path

    @torch.no_grad()
    def verify(self, candidate: Candidate, batch: Tensor) -> VerifiedCandidate:
        """Make a candidate's files, and check that its answers are those of the saved members.

        Args:
            candidate: the candidate.
            batch: example inputs and samples, float32 (N, channels, height, width).

        Raises:
            NotCompiled: the engine cannot run the members.
            OtherAnswersError: a score differs by more than ``runtime.tolerance``.
        """
        for position in candidate.positions:
            _require_one_tensor(self.loaded[position], batch[:1])
        # The saved members run first, because torch.export may change a module.
        expected = [self.loaded[position](batch) for position in candidate.positions]
        entry = candidate.make()
        with converter_errors():
            run = replace(
                load_executable(
                    entry, self.spec, self.work, batch.device, threads=os.cpu_count() or 1
                ),
                postprocess=self.loaded[candidate.positions[0]].postprocess,
            )
            # The batch may have more samples than one call takes.
            calls = torch.split(batch, min(run.max_batch_size, len(batch)))
            outputs = torch.cat([run(each) for each in calls], dim=1)
        largest_difference = max(
            difference(saved, raw, self.spec, self.spec.members[position])
            for position, saved, raw in zip(candidate.positions, expected, outputs, strict=True)
        )
        tolerance = self.spec.runtime.tolerance
        # Written so that NaN is refused, too.
        if not largest_difference <= tolerance:
            raise OtherAnswersError(
                f"in {candidate.precision} {'its' if len(outputs) == 1 else 'their'} scores "
                f"differ by {largest_difference:.1e}, more than {tolerance:g}",
                largest_difference,
            )
        return VerifiedCandidate(replace(entry, difference=largest_difference), expected, run)


def _require_one_tensor(loaded: LoadedMember, batch: Tensor) -> None:
    """Refuse a member whose network gives its postprocess more than one tensor.

    Raises:
        NotCompiled: an executable gives one tensor.
    """
    if loaded.postprocess is None:
        return
    raw = loaded.forward(batch)
    if not isinstance(raw, Tensor):
        raise NotCompiled(f"its forward gives {type(raw).__name__}, not one tensor")


@torch.no_grad()
def milliseconds_in_turns(
    runs: Mapping[str, Callable[[Tensor], object]], batch: Tensor
) -> dict[str, tuple[float, ...]]:
    """Time several ways to compute the same members, in turns.

    Each round runs every way once, so that other load on the machine slows all of them alike.

    Args:
        runs: name of each way -> function that computes the members for a batch.
        batch: example inputs, float32 (N, channels, height, width).

    Returns:
        Name of each way -> median milliseconds for each of `TIMED_BATCH_SIZES`.
    """
    result: dict[str, list[float]] = {name: [] for name in runs}
    for batch_size in TIMED_BATCH_SIZES:
        repeats = -(-batch_size // len(batch))
        inputs = batch.repeat((repeats, 1, 1, 1))[:batch_size]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        # The first run of a batch size is slower, because the engine makes kernels for this size.
        # It only serves as an estimate of the time for one round.
        round_seconds = sum(seconds_of(lambda: run(inputs), batch.device) for run in runs.values())  # noqa: B023
        started = time.perf_counter()
        for num_rounds in range(_MAX_ROUNDS):
            elapsed = time.perf_counter() - started
            if num_rounds >= _MIN_ROUNDS and elapsed + round_seconds > _MAX_TIMING_SECONDS:
                break
            for name, run in runs.items():
                seconds[name].append(seconds_of(lambda: run(inputs), batch.device))  # noqa: B023
            round_seconds = (time.perf_counter() - started) / (num_rounds + 1)
        for name, values in seconds.items():
            result[name].append(1000 * statistics.median(values))
    return {name: tuple(values) for name, values in result.items()}


def speed_up(milliseconds: Sequence[float], baseline: Sequence[float]) -> float:
    """Return how many times as fast as a baseline a candidate is, over all batch sizes.

    This is the harmonic mean of the speed-ups of the batch sizes.

    Args:
        milliseconds: the candidate's time for each of `TIMED_BATCH_SIZES`.
        baseline: the baseline's time for each of `TIMED_BATCH_SIZES`.
    """
    ratios = [one / other for one, other in zip(milliseconds, baseline, strict=True)]
    return 1 / statistics.mean(ratios)
