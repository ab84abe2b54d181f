"""Try candidates: one is kept if its answers are those of the saved members and it is faster than
what would run without it."""

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

MIN_SPEED_UP = 1.1
"""Below this the timing cannot tell a gain from noise, and the saved member is simpler."""

_MIN_TIMED_RUNS = 3
_MAX_TIMED_RUNS = 15
_MAX_TIMING_SECONDS = 3.0
"""After `_MIN_TIMED_RUNS` rounds, no round begins that would end after this."""


@dataclass(frozen=True)
class Tried:
    """A candidate whose answers are those of the saved members.

    Attributes:
        entry: its part of the archive's record.
        outputs: its raw outputs for the batch, (M members, N samples, outputs).
        run: the loaded executable.
    """

    entry: CompiledExecutable
    outputs: Tensor
    run: CompiledMembers


@dataclass(frozen=True)
class Trial:
    """Tries candidates for the members of one ensemble.

    Attributes:
        spec: the ensemble.
        loaded: its members as they were saved.
        work: the folder that the names of the made files start from.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    work: Path

    @torch.no_grad()
    def of(self, candidate: Candidate, batch: Tensor) -> Tried:
        """Make a candidate's files, and compare its answers with those of the saved members.

        Args:
            candidate: what to try.
            batch: example inputs and samples, float32 (N, channels, height, width).

        Raises:
            NotCompiled: it cannot be made, or its answers differ.
        """
        for position in candidate.positions:
            _require_one_tensor(self.loaded[position], batch[:1])
        # Before it is made: torch.export may leave a module changed.
        expected = [self.loaded[position](batch) for position in candidate.positions]
        entry = candidate.make()
        with converter_errors():
            run = replace(
                load_executable(
                    entry, self.spec, self.work, batch.device, threads=os.cpu_count() or 1
                ),
                postprocess=self.loaded[candidate.positions[0]].postprocess,
            )
            # There may be more samples than one call takes.
            calls = torch.split(batch, min(run.max_batch_size, len(batch)))
            outputs = torch.cat([run(each) for each in calls], dim=1)
        changed = max(
            difference(saved, raw, self.spec, self.spec.members[position])
            for position, saved, raw in zip(candidate.positions, expected, outputs, strict=True)
        )
        tolerance = self.spec.runtime.tolerance
        if not changed <= tolerance:
            raise OtherAnswersError(
                f"in {candidate.precision} {'its' if len(outputs) == 1 else 'their'} scores "
                f"differ by {changed:.1e}, more than {tolerance:g}",
                changed,
            )
        return Tried(replace(entry, difference=changed), outputs, run)


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

    Args:
        runs: name -> the way.
        batch: example inputs, float32 (N, channels, height, width).

    Returns:
        Name -> median milliseconds for each of `TIMED_BATCH_SIZES`.
    """
    result: dict[str, list[float]] = {name: [] for name in runs}
    for batch_size in TIMED_BATCH_SIZES:
        repeats = -(-batch_size // len(batch))
        inputs = batch.repeat((repeats, 1, 1, 1))[:batch_size]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        # The first run of a batch size makes kernels.
        round_seconds = sum(seconds_of(lambda: run(inputs), batch.device) for run in runs.values())  # noqa: B023
        started = time.perf_counter()
        for number in range(_MAX_TIMED_RUNS):
            elapsed = time.perf_counter() - started
            if number >= _MIN_TIMED_RUNS and elapsed + round_seconds > _MAX_TIMING_SECONDS:
                break
            for name, run in runs.items():
                seconds[name].append(seconds_of(lambda: run(inputs), batch.device))  # noqa: B023
            round_seconds = (time.perf_counter() - started) / (number + 1)
        for name, values in seconds.items():
            result[name].append(1000 * statistics.median(values))
    return {name: tuple(values) for name, values in result.items()}


def speed_up(milliseconds: Sequence[float], baseline: Sequence[float]) -> float:
    """How many times as fast as the baseline, as the mean over the batch sizes of the times."""
    shares = [one / other for one, other in zip(milliseconds, baseline, strict=True)]
    return 1 / statistics.mean(shares)
