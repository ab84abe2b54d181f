"""Runs all members on one batch: each distinct preprocessing once, every member once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import MemberError
from ..base.threads import SERIAL, ThreadPool
from ..inputs.image_decoding import ImageDecoding
from ..inputs.preprocessing import preprocessors_of
from ..members.executable import Executable
from ..members.executables import Executables, load_executables
from ..members.loading import scores
from ..members.timing import fastest_seconds_of
from ..observability.timeline import MemberCall
from ..spec import EnsembleSpec
from .member_inputs import Input, MemberInputs, PreparedImage
from .member_scores import MemberScores, State
from .schedule import Task, Work, in_turn, max_batch_size_for, plan

logger = logging.getLogger(__name__)

NOT_FINITE = "its scores are not finite numbers: its weights or this input overflow"


@dataclass(frozen=True)
class _Samples:
    """Samples that a member has to compute.

    Attributes:
        batch: the preprocessed samples, float32 (n, channels, height, width).
        rows: (n,) int64, their positions among all samples of the run.
    """

    batch: Tensor
    rows: Tensor


@dataclass(frozen=True)
class _Call:
    """An executable and the samples that all of its members have to compute."""

    executable: Executable
    samples: _Samples


class Runtime:
    """The loaded members of an ensemble on one device."""

    def __init__(
        self,
        spec: EnsembleSpec,
        executables: Executables,
        inputs: MemberInputs,
        seconds_per_sample: Mapping[Executable, float],
        device: torch.device,
        pool: ThreadPool = SERIAL,
    ) -> None:
        """Keep the members that `load` has loaded.

        Args:
            spec: the ensemble.
            executables: the functions that compute the members.
            inputs: makes the members' inputs.
            seconds_per_sample: for each executable the time of a run with a single sample on one
                thread.
            device: where the members run.
            pool: the threads that run members side by side on a CPU.
        """
        self.spec = spec
        self.device = device
        self._pool = pool
        self._executables = executables
        self._inputs = inputs
        self._seconds_per_sample = seconds_per_sample
        self._temperatures = torch.tensor(
            [member.temperature for member in spec.members], device=device
        ).view(-1, 1, 1)

    @classmethod
    def load(
        cls,
        spec: EnsembleSpec,
        folder: Path,
        device: torch.device,
        pool: ThreadPool = SERIAL,
        *,
        compiled: bool = False,
    ) -> Runtime:
        """Load every member, run it once and time it.

        Args:
            spec: the ensemble.
            folder: where the files that the spec names are.
            device: where all members run.
            pool: the threads that resize images, and on a CPU run members side by side.
            compiled: whether to run the executables that the build put beside the spec. This is
                safe only for an archive whose files were checked against its record.

        Raises:
            MemberError: a member's file, architecture or output does not fit the spec.
            SpecError: a preprocessing does not exist.
            ArchiveError: the record of compiled executables is damaged.
        """
        preprocessors, group_of_member = preprocessors_of(spec, folder, device, pool)
        example_inputs = [each(each.examples(3)) for each in preprocessors]
        executables = load_executables(
            spec,
            folder,
            group_of_member,
            example_inputs,
            device,
            threads=pool.threads,
            compiled=compiled,
            side_by_side=partial(_is_faster_side_by_side, threads=pool.threads),
        )
        seconds_per_sample = {}
        for executable in (*executables.single, *executables.joint):
            one_sample = example_inputs[group_of_member[executable.members[0]]][:1]
            seconds_per_sample[executable] = pool.run(
                partial(fastest_seconds_of, partial(executable, one_sample), device)
            )
        inputs = MemberInputs(preprocessors, group_of_member, device)
        return cls(spec, executables, inputs, seconds_per_sample, device, pool)

    @property
    def executables(self) -> Executables:
        """The functions that compute the members, alone or several at once."""
        return self._executables

    @property
    def seconds(self) -> list[float]:
        """For each member the seconds of a single-sample run on one thread, measured at load."""
        return [self._seconds_per_sample[single] for single in self._executables.single]

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Shape of an input that fits every member; None if their preprocessings differ."""
        return self._inputs.shape

    def resized_pixels(self, width: int, height: int) -> int:
        """Return the number of pixels to which all preprocessings together resize an image."""
        return self._inputs.resized_pixels(width, height)

    def decodings(self, members: Iterable[int]) -> list[ImageDecoding]:
        """Return the distinct ways in which the image files of some members are decoded."""
        return self._inputs.decodings(members)

    def prepare(
        self, decode: Callable[[ImageDecoding], Tensor], members: Iterable[int]
    ) -> PreparedImage:
        """Decode an image for the members at some positions and resize it.

        `MemberInputs.prepare` describes the arguments.
        """
        return self._inputs.prepare(decode, members)

    def prepare_file(self, content: bytes, name: str) -> PreparedImage:
        """Decode an image file for all members, as the worker does, and resize it.

        `MemberInputs.prepare_file` describes the arguments and errors.
        """
        max_pixels = self.spec.limits.max_pixels
        return self._inputs.prepare_file(content, name, max_pixels=max_pixels)

    def example_inputs(self, count: int) -> list[PreparedImage]:
        """Make inputs on which the members are tried and warmed up."""
        return self._inputs.examples(count)

    def run(
        self,
        images: Sequence[Input],
        *,
        selected: Tensor | None = None,
        deadlines: Sequence[float | None] | None = None,
        end: float | None = None,
    ) -> MemberScores:
        """Compute the members' scores.

        A member that raises an error or gives NaN does not stop the others. Its `State` in the
        result is FAILED, and `MemberScores.reasons` has the cause.

        Args:
            images: N samples.
            selected: (M, N) bool, true where the member has to compute the sample; None: every
                member computes every sample.
            deadlines: for each sample the time of ``time.monotonic`` after which no further member
                begins with it. Members then run in the order of voting weight per second.
            end: the time of ``time.monotonic`` after which no further micro-batch begins; the
                samples that remain are late. The first micro-batch always begins.

        Raises:
            MemberError: memory is too short for a single sample.
        """
        num_members, num_samples = len(self.spec.members), len(images)
        result = self._empty_result(num_samples)
        if selected is None:
            selected = torch.ones((num_members, num_samples), dtype=torch.bool)
        latest = torch.tensor(
            [
                float("inf") if deadline is None else deadline
                for deadline in deadlines or [None] * num_samples
            ],
            dtype=torch.float64,
        )
        step = self.spec.runtime.micro_batch
        for start in range(0, num_samples, step):
            if start and end is not None and time.monotonic() > end:
                result.states[:, start:][selected[:, start:]] = State.LATE
                break
            rows = range(start, min(start + step, num_samples))
            self._run_micro_batch(images, rows, selected, latest, result)
        return result

    def inputs(self, images: Sequence[Input], calls: list[MemberCall]) -> BatchInputs:
        """Make a batch whose members are computed one by one, as a caller needs them.

        Args:
            images: N samples.
            calls: the list to which the members' calls are appended.
        """
        return BatchInputs(self, images, calls)

    def _empty_result(self, num_samples: int) -> MemberScores:
        """Make the scores of all members for some samples, before any member has run."""
        return MemberScores.empty(len(self.spec.members), num_samples, len(self.spec.score_labels))

    def _run_micro_batch(
        self,
        images: Sequence[Input],
        rows: range,
        selected: Tensor,
        latest: Tensor,
        result: MemberScores,
    ) -> None:
        """Compute some rows of a run; if memory is too short for them, compute them in halves."""
        try:
            self._run_rows(images, rows, selected, latest, result)
            return
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise MemberError(
                    f"out of memory for a single sample of shape {tuple(images[rows[0]].shape)} "
                    f"on {self.device}: use fewer workers, or smaller members"
                ) from error
        # Outside of the `except` block, because the error refers to the frames that failed, and so
        # keeps their tensors in memory as long as the block lasts.
        middle = len(rows) // 2
        logger.warning("out of memory for %d samples; trying halves", len(rows))
        torch.cuda.empty_cache()
        for half in (rows[:middle], rows[middle:]):
            self._run_micro_batch(images, half, selected, latest, result)

    @torch.inference_mode()
    def _run_rows(
        self,
        images: Sequence[Input],
        rows: range,
        selected: Tensor,
        latest: Tensor,
        result: MemberScores,
    ) -> None:
        """Preprocess some rows of a run, and compute them with the members selected for them.

        Args:
            images: all samples of the run.
            rows: the positions of the samples to compute.
            selected: (M, N) bool, true where the member has to compute the sample.
            latest: (N,) float64, the time of ``time.monotonic`` after which no member begins with
                the sample; infinite without a deadline.
            result: where the scores go.
        """
        part = slice(rows.start, rows.stop)
        batches: dict[int, Tensor] = {}
        has_deadline = not bool(latest[part].isinf().all())
        every_row = torch.arange(rows.start, rows.stop)
        # In the common case each member computes each row, and no rows need to be picked out.
        all_selected = not has_deadline and bool(selected[:, part].all())
        samples_of_member: dict[int, _Samples] = {}
        for member in self._order(has_deadline):
            sample_rows = every_row
            if not all_selected:
                in_time = latest[part] > time.monotonic()
                result.states[member, part][selected[member, part] & ~in_time] = State.LATE
                sample_rows = every_row[selected[member, part] & in_time]
            if not len(sample_rows):
                continue
            group = self._inputs.group_of_member[member]
            if group not in batches:
                batches[group] = self._inputs.batch(group, [images[row] for row in rows])
            batch = batches[group]
            if len(sample_rows) < len(rows):
                batch = batch[(sample_rows - rows.start).to(self.device)]
            samples = _Samples(batch, sample_rows)
            if has_deadline:
                # The member runs now, so that the next one sees how much time is left.
                self._run_members({member: samples}, result)
            else:
                samples_of_member[member] = samples
        self._run_members(samples_of_member, result)

    def _order(self, has_deadline: bool) -> list[int]:
        """Order the members: as in the spec, or by voting weight per second under a deadline."""
        members = list(range(len(self.spec.members)))
        if not has_deadline:
            return members
        weights = [member.voting_weight for member in self.spec.members]
        seconds = self.seconds
        return sorted(members, key=lambda member: -weights[member] / max(seconds[member], 1e-9))

    def _run_members(self, samples_of_member: Mapping[int, _Samples], result: MemberScores) -> None:
        """Compute some members, side by side or one after another.

        Args:
            samples_of_member: position of a member -> the samples that it has to compute.
            result: where the scores go.
        """
        calls = self._cover(samples_of_member)
        for uses_all_threads in (True, False):
            self._run_calls(
                [call for call in calls if call.executable.uses_all_threads is uses_all_threads],
                result,
            )

    def _run_calls(self, calls: Sequence[_Call], result: MemberScores) -> None:
        """Make some calls, side by side or one after another, whichever is faster."""
        on_cpu = self.device.type == "cpu"
        works = []
        for call in calls:
            executable, batch = call.executable, call.samples.batch
            max_batch_size = executable.max_batch_size
            if on_cpu:
                max_cached_samples = max_batch_size_for(batch.shape[1:])
                if executable.uses_all_threads:
                    # All threads share such a call, and each thread's core has its own cache.
                    max_cached_samples *= self._pool.threads
                max_batch_size = min(max_batch_size, max_cached_samples)
            works.append(
                Work(
                    num_samples=len(batch),
                    seconds_per_sample=self._seconds_per_sample[executable],
                    max_batch_size=max_batch_size,
                    concurrent=executable.concurrent,
                )
            )

        def run(task: Task) -> None:
            call = calls[task.work]
            for part in task.calls:
                batch, rows = call.samples.batch[part], call.samples.rows[part]
                self._run_executable(call.executable, batch, rows, result)

        may_share = on_cpu and not any(call.executable.uses_all_threads for call in calls)
        side_by_side = plan(works, self._pool.threads) if may_share and works else None
        if side_by_side is not None:
            self._pool.map(run, side_by_side)
        else:
            for task in in_turn(works):
                run(task)

    def _cover(self, samples_of_member: Mapping[int, _Samples]) -> list[_Call]:
        """Choose executables that together compute each member once.

        An executable of several members is chosen if all of them have to compute the same samples,
        and if it computes so many samples faster than its members do one by one.
        """
        remaining = dict(samples_of_member)
        calls = []
        for executable in self._executables.joint:
            parts = [remaining[member] for member in executable.members if member in remaining]
            if len(parts) < len(executable.members):
                continue
            rows = parts[0].rows
            if executable.pays_for(len(rows)) and all(
                part.rows is rows or torch.equal(part.rows, rows) for part in parts
            ):
                calls.append(_Call(executable, parts[0]))
                for member in executable.members:
                    del remaining[member]
        singles = self._executables.single
        return [*calls, *(_Call(singles[member], each) for member, each in remaining.items())]

    @torch.inference_mode()
    def _run_executable(
        self, executable: Executable, batch: Tensor, rows: Tensor, result: MemberScores
    ) -> None:
        """Call an executable once, and write the scores of its members into the result."""
        members = executable.members
        start = time.monotonic()
        try:
            values, logits = scores(
                executable(batch),
                self.spec.task,
                self.spec.output_of(self.spec.members[members[0]]),
                self._temperatures[list(members)],
            )
            values = values.cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._run_smaller(executable, batch, rows, result, error)
            return
        result.calls.append(MemberCall(members, len(rows), start, time.monotonic()))
        indices = torch.tensor(members).unsqueeze(1)
        result.scores[indices, rows] = values
        result.states[indices, rows] = State.ANSWERED
        if logits is not None:
            result.logits[indices, rows] = logits.cpu()
        finite = values.isfinite().all(dim=2)
        if not bool(finite.all()):
            for member, each in zip(members, finite, strict=True):
                result.fail(member, rows[~each], NOT_FINITE)

    def _run_smaller(
        self,
        executable: Executable,
        batch: Tensor,
        rows: Tensor,
        result: MemberScores,
        error: Exception,
    ) -> None:
        """Find the member and the sample because of which a call failed, and compute the others.

        First each member runs with its own executable, then each half of the batch.
        """
        if len(executable.members) > 1:
            for member in executable.members:
                self._run_executable(self._executables.single[member], batch, rows, result)
        elif len(rows) > 1:
            middle = len(rows) // 2
            for half in (slice(None, middle), slice(middle, None)):
                self._run_executable(executable, batch[half], rows[half], result)
        else:
            (member,) = executable.members
            logger.error(
                "member %s failed on a sample", self.spec.members[member].name, exc_info=error
            )
            shape = tuple(batch.shape[1:])
            result.fail(member, rows, f"it failed on a sample of {shape}: {error}")


def _is_faster_side_by_side(seconds: Sequence[float], threads: int) -> bool:
    """Return whether a single sample is answered sooner if the executables run side by side.

    Args:
        seconds: for each executable the time of a run with a single sample on one thread.
        threads: how many threads the worker has.
    """
    works = [Work(1, each, max_batch_size=1, concurrent=True) for each in seconds]
    return plan(works, threads) is not None


class BatchInputs:
    """A batch of samples for callers that decide member by member what to compute next.

    Each distinct preprocessing runs when the first of its members has to compute samples.
    """

    def __init__(self, runtime: Runtime, images: Sequence[Input], calls: list[MemberCall]) -> None:
        """Keep the samples; nothing is computed yet.

        Args:
            runtime: the members.
            images: N samples.
            calls: the list to which the members' calls are appended.
        """
        self._runtime = runtime
        self._images = images
        self._batches: dict[int, Tensor] = {}
        self._calls = calls

    @torch.inference_mode()
    def scores(self, member: int, rows: Tensor) -> Tensor:
        """Compute one member's scores for some samples, float32 (n, C score labels).

        Args:
            member: position of the member in the ensemble.
            rows: (n,) int64 positions of the samples in the batch.

        Raises:
            MemberError: the member fails, gives NaN or infinity, or the device's memory is too
                small for so many samples, which `Runtime.run` computes in parts.
        """
        try:
            return self._scores(member, rows)
        except torch.OutOfMemoryError as error:
            name = self._runtime.spec.members[member].name
            raise MemberError(f"member {name}: out of memory for {len(rows)} samples") from error

    def _scores(self, member: int, rows: Tensor) -> Tensor:
        runtime = self._runtime
        group = runtime._inputs.group_of_member[member]
        if group not in self._batches:
            self._batches[group] = runtime._inputs.batch(group, self._images)
        result = runtime._empty_result(len(self._images))
        batch = self._batches[group][rows.to(runtime.device)]
        runtime._run_members({member: _Samples(batch, rows)}, result)
        self._calls += result.calls
        if result.reasons:
            name = runtime.spec.members[member].name
            raise MemberError(f"member {name}: {next(iter(result.reasons.values()))}")
        return result.scores[member, rows]
