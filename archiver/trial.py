"""Try a compiled executable: it is kept if its answers are those of the saved members and it is
faster than what would run without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .libraries import NotCompiled

_TIMED_RUNS = 7
_MIN_SPEED_UP = 1.1
"""Below this the timing cannot tell a gain from noise, and the saved member is simpler."""


class OtherAnswersError(NotCompiled):
    """A compiled executable gives other answers than the saved members."""


@dataclass(frozen=True)
class Kept:
    """A compiled executable that is worth keeping.

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
        work: the folder that the names of compiled files start from.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    work: Path

    @torch.no_grad()
    def of(self, candidate: Candidate, batch: Tensor, baseline: Callable[[Tensor], Tensor]) -> Kept:
        """Compile a candidate, compare its answers, and time it.

        Args:
            candidate: what to try.
            batch: example inputs and samples, float32 (N, channels, height, width).
            baseline: what would compute the same members without it.

        Raises:
            NotCompiled: torch cannot compile it, its answers differ, or it is no faster.
        """
        # Before it is compiled: torch.export may leave a module changed.
        expected = [self.loaded[position](batch) for position in candidate.positions]
        entry = candidate.compile()
        run = replace(
            load_executable(entry, self.spec, self.work, batch.device),
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
                f"differ by {changed:.1e}, more than {tolerance:g}"
            )
        repeats = -(-candidate.num_timed_samples // len(batch))
        timed = batch.repeat((repeats, 1, 1, 1))[: candidate.num_timed_samples]
        require_faster(run, baseline, timed)
        return Kept(replace(entry, difference=changed), outputs, run)


def require_faster(
    compiled: Callable[[Tensor], Tensor], baseline: Callable[[Tensor], Tensor], batch: Tensor
) -> None:
    """Time two ways to compute the same members, in turns.

    Raises:
        NotCompiled: the compiled one is hardly faster.
    """
    seconds: dict[str, list[float]] = {"baseline": [], "compiled": []}
    for _ in range(_TIMED_RUNS):
        for name, run in (("baseline", baseline), ("compiled", compiled)):
            seconds[name].append(seconds_of(lambda run=run: run(batch), batch.device))  # type: ignore[misc]
    before, after = (1000 * min(seconds[name]) for name in ("baseline", "compiled"))
    if after > before / _MIN_SPEED_UP:
        raise NotCompiled(f"that makes it no faster ({after:.2g} ms, and {before:.2g} as saved)")
