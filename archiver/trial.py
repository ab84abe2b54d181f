"""Compares candidates with the saved members, and times them.

The build keeps a candidate if its answers are those of the saved members, and if it is faster than
what would run without it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..handlers.members.compiled import CompiledMembers, load_executable
from ..handlers.members.compiled_record import CompiledExecutable
from ..handlers.members.loading import LoadedMember, as_outputs, difference, score_changes
from ..handlers.members.timing import seconds_of
from ..handlers.spec import EnsembleSpec, Precision
from .candidates import Candidate
from .metric_proof import MetricProof
from .not_compiled import NotCompiled, OtherAnswersError, converter_errors
from .quantization import AccuracyGoal

TIMED_BATCH_SIZES = (1, 8)
"""Numbers of samples: a request with one image, and a batch of requests."""

MIN_SPEED_UP = 1.1
"""Smaller gains are noise of the timing, and the saved member is simpler."""

_MIN_ROUNDS = 3
_MAX_ROUNDS = 15
_MAX_TIMING_SECONDS = 1.5
"""For each batch size. After `_MIN_ROUNDS`, no round begins that is likely to end later."""


@dataclass(frozen=True, kw_only=True)
class ChosenCandidate:
    """A candidate whose answers are those of the saved members, and which will be packed.

    Attributes:
        label: how tables call its precision.
        entry: the candidate's entry in the archive's record.
        saved_outputs: for each of its members the raw outputs of the saved member for the batch
            that the candidate was verified with, float32 (N samples, outputs).
        development_loss: share of the development images that the ensemble decides worse with it,
            if it may be used only after a proof with the held-out images; else None.
    """

    label: str
    entry: CompiledExecutable
    saved_outputs: Sequence[Tensor]
    development_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class VerifiedCandidate(ChosenCandidate):
    """A candidate whose answers are those of the saved members, and which is still loaded.

    Attributes:
        run: the loaded executable.
    """

    run: CompiledMembers

    def without_run(self) -> ChosenCandidate:
        """Let go of the executable: those of all members could take more memory than there is."""
        return ChosenCandidate(
            label=self.label,
            entry=self.entry,
            saved_outputs=self.saved_outputs,
            development_loss=self.development_loss,
        )


@dataclass(frozen=True)
class Trial:
    """Compares candidates with the saved members of one ensemble.

    Attributes:
        spec: the ensemble.
        loaded: the ensemble's members as they were saved.
        work: the folder in which candidates write their files.
        proof: judges bfloat16 and int8 by labelled data; None: the spec's tolerance does.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    work: Path
    proof: MetricProof | None = None

    @torch.no_grad()
    def verify(self, candidate: Candidate, batch: Tensor) -> VerifiedCandidate:
        """Make a candidate's files, and check that its answers are those of the saved members.

        With a proof, a member alone in bfloat16 may differ by more than ``runtime.tolerance`` if it
        decides the development images well enough, and one in int8 must decide them well enough.

        Args:
            candidate: the candidate.
            batch: example inputs and samples, float32 (N, channels, height, width).

        Raises:
            NotCompiled: the engine cannot run the members.
            OtherAnswersError: a score differs by more than ``runtime.tolerance``, or too many
                development images are decided worse.
        """
        for position in candidate.positions:
            _require_one_tensor(self.loaded[position], batch[:1])
        # The saved members run first, because torch.export may change a module.
        expected = [self.loaded[position](batch) for position in candidate.positions]
        entry = candidate.make()
        with converter_errors():
            run = self.load(entry, candidate.positions, batch.device)
            outputs = outputs_of(run, torch.split(batch, min(run.max_batch_size, len(batch))))
        largest_difference = max(
            difference(saved, raw, self.spec, self.spec.members[position])
            for position, saved, raw in zip(candidate.positions, expected, outputs, strict=True)
        )
        entry = replace(entry, difference=largest_difference)
        verified = VerifiedCandidate(
            label=candidate.label, entry=entry, saved_outputs=expected, run=run
        )
        # Written so that NaN is refused, too.
        is_close = largest_difference <= self.spec.runtime.tolerance
        needs_proof = candidate.precision is Precision.INT8 or (
            candidate.precision is Precision.BFLOAT16 and not is_close
        )
        if self.proof is not None and needs_proof and len(candidate.positions) == 1:
            return self._judged_by_decisions(candidate, verified, self.proof)
        if not is_close:
            raise OtherAnswersError(
                f"in {candidate.precision} {'its' if len(outputs) == 1 else 'their'} scores "
                f"differ by {largest_difference:.1e}, more than {self.spec.runtime.tolerance:g}",
                largest_difference,
            )
        return verified

    def load(
        self, entry: CompiledExecutable, positions: Sequence[int], device: torch.device
    ) -> CompiledMembers:
        """Load the files of a candidate.

        Args:
            entry: the candidate's entry in the archive's record.
            positions: positions of its members in the ensemble.
            device: the device on which it runs.
        """
        return replace(
            load_executable(entry, self.spec, self.work, device, threads=os.cpu_count() or 1),
            postprocess=self.loaded[positions[0]].postprocess,
        )

    def _judged_by_decisions(
        self, candidate: Candidate, verified: VerifiedCandidate, proof: MetricProof
    ) -> VerifiedCandidate:
        """Return a candidate with its development loss.

        Raises:
            OtherAnswersError: too many development images are decided worse.
        """
        inputs = proof.development_inputs(candidate.positions[0])
        size = min(verified.run.max_batch_size, self.spec.runtime.micro_batch)
        outputs = outputs_of(verified.run, torch.split(inputs, size))
        loss = proof.development_loss(candidate.positions, outputs)
        if not loss <= proof.max_loss:
            raise OtherAnswersError(
                f"in {candidate.precision} {loss:.2%} of the development images are decided worse, "
                f"more than {proof.max_loss:.2%}",
                verified.entry.difference,
            )
        return replace(verified, development_loss=loss)

    def accuracy_goal(self, position: int, batch: Tensor) -> AccuracyGoal:
        """Say what a member that is quantized in part must reach."""
        proof, loaded = self.proof, self.loaded[position]
        member = self.spec.members[position]
        inputs = batch if proof is None else proof.development_inputs(position)
        with torch.no_grad():
            parts = torch.split(inputs, self.spec.runtime.micro_batch)
            saved = torch.cat([loaded(part) for part in parts])

        def outputs(raw: Tensor) -> Tensor:
            if loaded.postprocess is not None:
                return loaded.postprocess(raw, len(raw), raw.device)
            return as_outputs(raw)

        def changes(rows: Sequence[int], raw: Tensor) -> Tensor:
            return score_changes(saved[rows], outputs(raw), self.spec, member)

        def loss(raw: Tensor) -> float:
            if proof is not None:
                return proof.development_loss((position,), outputs(raw).unsqueeze(0))
            return float(changes(range(len(raw)), raw).max())

        max_loss = self.spec.runtime.tolerance if proof is None else proof.max_loss
        return AccuracyGoal(inputs, loss, max_loss, changes)


def outputs_of(run: CompiledMembers, batches: Iterable[Tensor]) -> Tensor:
    """Compute raw outputs, float32 (M members, N samples, outputs), batch after batch.

    Args:
        run: the executable.
        batches: inputs, float32 (n, channels, height, width) each.
    """
    return torch.cat([run(batch) for batch in batches], dim=1)


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
