"""All members on one batch: each distinct preprocessing once, every member once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import MemberError
from ..base.threads import SERIAL, ThreadPool
from ..inputs.example_inputs import trial_images
from ..inputs.preprocessing import Preprocessor, Resized, preprocessors_of
from ..members.compiled import CompiledMembers
from ..members.eager_optimisations import accelerate
from ..members.fused import Stack, Trunk, find_stacks, find_trunks
from ..members.loading import LoadedMember, check_member, load_member, scores
from ..spec import EnsembleSpec, Member
from .schedule import Task, Work, in_turn, piece_of, plan

logger = logging.getLogger(__name__)

_RUNS = 10
_LONG = 0.1
"""Most runs of a member, and seconds, to learn what it takes."""

# A GPU takes all samples of a micro-batch at once.
_ALL = sys.maxsize

NOT_FINITE = "its scores are not finite numbers: its weights or this input overflow"


class State(IntEnum):
    """What became of one sample at one member."""

    NOT_ASKED = 0
    ANSWERED = 1
    FAILED = 2
    LATE = 3


@dataclass
class MemberScores:
    """What the members say about a batch, on the CPU.

    Attributes:
        scores: (M members, N samples, C score labels) float32; NaN where there is none.
        logits: same shape; NaN where a member gives none.
        states: (M, N) uint8 of `State`.
        reasons: (member, sample) -> why it failed.
    """

    scores: Tensor
    logits: Tensor
    states: Tensor
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)

    def fail(self, member: int, samples: Tensor, reason: str) -> None:
        """Note that a member gave nothing for some samples."""
        self.states[member, samples] = State.FAILED
        self.reasons |= dict.fromkeys(((member, sample) for sample in samples.tolist()), reason)


@dataclass(frozen=True)
class PreparedImage:
    """An image at the sizes that members take, small whatever the image was.

    Attributes:
        shape: (3, height, width) of the image.
        by_preprocessing: the image for each distinct preprocessing; None where no member that is
            asked has it.
    """

    shape: tuple[int, ...]
    by_preprocessing: tuple[Resized | None, ...]


Input = Tensor | PreparedImage
"""One sample for the members: pixels, uint8 (3, height, width), or what `Runtime.prepare` made of
them; or an input that a client preprocessed itself, float32 of `Runtime.input_shape`."""


@dataclass(frozen=True)
class _Asked:
    """A member, or several that run as one, and the samples that it is to see."""

    members: tuple[int, ...]
    batch: Tensor
    rows: Tensor
    stack: Stack | Trunk | None = None


class Runtime:
    """The loaded members of an ensemble on one device."""

    def __init__(
        self,
        spec: EnsembleSpec,
        members: Sequence[LoadedMember],
        preprocessors: Sequence[Preprocessor],
        group_of_member: Sequence[int],
        device: torch.device,
        pool: ThreadPool = SERIAL,
    ) -> None:
        self.spec = spec
        self.device = device
        self._pool = pool
        self._members = list(members)
        self._preprocessors = preprocessors
        self._group_of_member = group_of_member
        self._stacks: list[Stack | Trunk] = []
        self._temperatures = torch.tensor(
            [member.temperature for member in spec.members], device=device
        ).view(-1, 1, 1)
        self.seconds = [0.0] * len(members)
        """What each member took for one sample on one thread when it was loaded."""
        self._seconds_as_one: dict[tuple[int, ...], float] = {}

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
        """Load every member and run it once, so that a mistake shows before the first request.

        Args:
            spec: the ensemble.
            folder: where the files that the spec names are.
            device: where all members live.
            pool: resizes images, and on the CPU runs members side by side.
            compiled: run the machine code that lies beside the spec, which only an archive's record
                vouches for.

        Raises:
            MemberError: a member's file, architecture or output does not fit.
            SpecError: a preprocessing that does not exist.
        """
        preprocessors, group_of_member = preprocessors_of(spec, folder, device, pool)
        images = trial_images(3)
        batches = [preprocessor(images) for preprocessor in preprocessors]
        libraries = CompiledMembers.find(folder, device) if compiled else None
        members = []
        for member, group in zip(spec.members, group_of_member, strict=True):
            started = time.perf_counter()
            members.append(_ready(spec, member, folder, batches[group], libraries, pool.threads))
            logger.info(
                "member %s loaded on %s in %.0f ms",
                member.name,
                device,
                1000 * (time.perf_counter() - started),
            )
        runtime = cls(spec, members, preprocessors, group_of_member, device, pool)
        runtime._stacks = [
            *find_stacks(spec, members, group_of_member, batches, libraries),
            *find_trunks(spec, group_of_member, batches, libraries, pool.threads),
        ]
        runtime._measure(batches)
        return runtime

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Shape of an input that fits every member; None if their preprocessings differ."""
        if len(self._preprocessors) > 1:
            return None
        return self._preprocessors[0].shape

    def resized_pixels(self, width: int, height: int) -> int:
        """How many pixels the preprocessings make of an image."""
        return sum(each.resized_pixels(width, height) for each in self._preprocessors)

    def prepare(self, pixels: Tensor, members: Iterable[int]) -> PreparedImage:
        """Resize an image for some members.

        Args:
            pixels: uint8 (3, height, width).
            members: their positions.
        """
        wanted = {self._group_of_member[member] for member in members}
        return PreparedImage(
            tuple(pixels.shape),
            tuple(
                preprocessor.resize(pixels) if position in wanted else None
                for position, preprocessor in enumerate(self._preprocessors)
            ),
        )

    def run(
        self,
        images: Sequence[Input],
        *,
        asked: Tensor | None = None,
        deadlines: Sequence[float | None] | None = None,
        end: float | None = None,
    ) -> MemberScores:
        """Scores of the members.

        A member that raises, or gives NaN, does not keep the others from answering: `states` and
        `reasons` tell.

        Args:
            images: N samples.
            asked: (M, N) bool, which member is to see which sample; None: all see all.
            deadlines: for each sample the time of ``time.monotonic`` from which on no further
                member begins with it; members then run in the order of voting weight per cost.
            end: the time of ``time.monotonic`` from which on no further micro-batch begins; the
                samples that are left are late.
        """
        members, samples = len(self._members), len(images)
        labels = len(self.spec.score_labels)
        result = MemberScores(
            scores=torch.full((members, samples, labels), float("nan")),
            logits=torch.full((members, samples, labels), float("nan")),
            states=torch.zeros((members, samples), dtype=torch.uint8),
        )
        wanted = torch.ones((members, samples), dtype=torch.bool) if asked is None else asked
        bounds = torch.tensor(
            [float("inf") if limit is None else limit for limit in deadlines or [None] * samples],
            dtype=torch.float64,
        )
        chunk = self.spec.runtime.micro_batch
        for start in range(0, samples, chunk):
            if start and end is not None and time.monotonic() > end:
                result.states[:, start:][wanted[:, start:]] = State.LATE
                break
            self._run_rows(
                images, range(start, min(start + chunk, samples)), wanted, bounds, result
            )
        return result

    def inputs(self, images: Sequence[Input]) -> BatchInputs:
        """A batch whose members are asked one by one."""
        return BatchInputs(self, images)

    def _run_rows(
        self,
        images: Sequence[Input],
        rows: range,
        wanted: Tensor,
        bounds: Tensor,
        result: MemberScores,
    ) -> None:
        """One micro-batch; where memory is short, its halves."""
        try:
            self._run_chunk(images, rows, wanted, bounds, result)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise MemberError(
                    f"out of memory for a single sample of shape {tuple(images[rows[0]].shape)} "
                    f"on {self.device}: fewer workers, or smaller members"
                ) from error
            middle = len(rows) // 2
            logger.warning("out of memory for %d samples; trying halves", len(rows))
            torch.cuda.empty_cache()
            for half in (rows[:middle], rows[middle:]):
                self._run_rows(images, half, wanted, bounds, result)

    @torch.inference_mode()
    def _run_chunk(
        self,
        images: Sequence[Input],
        rows: range,
        wanted: Tensor,
        bounds: Tensor,
        result: MemberScores,
    ) -> None:
        part = slice(rows.start, rows.stop)
        inputs: dict[int, Tensor] = {}
        hurried = not bool(bounds[part].isinf().all())
        # The common case, without a handful of operations for each member.
        every = torch.arange(rows.start, rows.stop)
        whole = not hurried and bool(wanted[:, part].all())
        ready: list[_Asked] = []
        for index in self._order(hurried):
            chosen = every
            if not whole:
                asked = wanted[index, part]
                in_time = bounds[part] > time.monotonic()
                result.states[index, part][asked & ~in_time] = State.LATE
                chosen = every[asked & in_time]
            if not len(chosen):
                continue
            shared = self._group_of_member[index]
            if shared not in inputs:
                inputs[shared] = self._inputs(shared, [images[row] for row in rows])
            batch = inputs[shared]
            if len(chosen) < len(rows):
                batch = batch[(chosen - rows.start).to(self.device)]
            ready.append(_Asked((index,), batch, chosen))
            if hurried:
                self._run_members([ready.pop()], result)
        self._run_members(ready, result)

    def _run_members(self, asked: Sequence[_Asked], result: MemberScores) -> None:
        """Side by side, or in turn; each with as many samples at once as it does best."""
        asked = self._stacked(asked)
        works = [
            Work(
                samples=len(each.rows),
                seconds=self._seconds_of(each),
                piece=piece_of(each.batch.shape[1:]) if self.device.type == "cpu" else _ALL,
                concurrent=(each.stack or self._members[each.members[0]]).concurrent,
            )
            for each in asked
        ]

        def run(task: Task) -> None:
            each = asked[task.work]
            for piece in task.pieces:
                self._run_unit(each, each.batch[piece], each.rows[piece], result)

        side_by_side = plan(works, self._pool.threads) if self.device.type == "cpu" else None
        if side_by_side is not None:
            self._pool.map(run, side_by_side)
        else:
            for task in in_turn(works):
                run(task)

    def _stacked(self, asked: Sequence[_Asked]) -> list[_Asked]:
        """Members of a stack that are all to see the same samples become one."""
        left = {each.members[0]: each for each in asked}
        joined = []
        for stack in self._stacks:
            parts = [left[index] for index in stack.members if index in left]
            if len(parts) < len(stack.members) or not stack.suits(len(parts[0].rows), self.device):
                continue
            rows = parts[0].rows
            if all(part.rows is rows or torch.equal(part.rows, rows) for part in parts):
                joined.append(_Asked(stack.members, parts[0].batch, rows, stack))
                left = {i: each for i, each in left.items() if i not in stack.members}
        return [*joined, *left.values()]

    def _seconds_of(self, asked: _Asked) -> float:
        """Of one sample."""
        if asked.stack is not None:
            return self._seconds_as_one[asked.members]
        (index,) = asked.members
        return self.seconds[index]

    def _order(self, hurried: bool) -> list[int]:
        """The spec's order; under a deadline the most voting weight per second first."""
        order = list(range(len(self._members)))
        if not hurried:
            return order
        weights = [member.voting_weight for member in self.spec.members]
        return sorted(order, key=lambda i: -weights[i] / max(self.seconds[i], 1e-9))

    def _inputs(self, shared: int, images: Sequence[Input]) -> Tensor:
        """(N, channels, height, width) float32 for the members of one preprocessing."""
        preprocessor = self._preprocessors[shared]
        pixels: dict[int, Tensor | Resized] = {}
        for row, image in enumerate(images):
            if isinstance(image, PreparedImage):
                resized = image.by_preprocessing[shared]
                if resized is not None:
                    pixels[row] = resized
            elif image.dtype is torch.uint8:
                pixels[row] = image
        preprocessed = preprocessor(list(pixels.values()))
        if len(pixels) == len(images):
            return preprocessed
        # Rows of which no member of this preprocessing is asked stay zero.
        batch = torch.zeros((len(images), *preprocessor.shape), device=self.device)
        batch[list(pixels)] = preprocessed
        for row, image in enumerate(images):
            if isinstance(image, Tensor) and image.dtype is not torch.uint8:
                batch[row] = image.to(self.device)
        return batch

    @torch.inference_mode()
    def _run_unit(self, asked: _Asked, batch: Tensor, rows: Tensor, result: MemberScores) -> None:
        """One member, or the members of one stack, on a piece of a batch."""
        first = self.spec.members[asked.members[0]]
        try:
            raw = self._raw(asked, batch)
            found, logits = scores(
                raw,
                self.spec.task,
                self.spec.output_of(first),
                self._temperatures[list(asked.members)],
            )
            found = found.cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._run_smaller(asked, batch, rows, result, error)
            return
        columns = torch.tensor(asked.members).unsqueeze(1)
        result.scores[columns, rows] = found
        result.states[columns, rows] = State.ANSWERED
        if logits is not None:
            result.logits[columns, rows] = logits.cpu()
        finite = found.isfinite().all(dim=2)
        if not bool(finite.all()):
            for index, each in zip(asked.members, finite, strict=True):
                result.fail(index, rows[~each], NOT_FINITE)

    def _raw(self, asked: _Asked, batch: Tensor) -> Tensor:
        """(members, samples, outputs)."""
        if asked.stack is not None:
            return asked.stack(batch)
        (index,) = asked.members
        return self._members[index](batch).unsqueeze(0)

    def _run_smaller(
        self,
        asked: _Asked,
        batch: Tensor,
        rows: Tensor,
        result: MemberScores,
        error: Exception,
    ) -> None:
        """After a failure: the members one by one, then halves, to find what is to blame."""
        if asked.stack is not None:
            for index in asked.members:
                self._run_unit(replace(asked, members=(index,), stack=None), batch, rows, result)
        elif len(rows) > 1:
            middle = len(rows) // 2
            for half in (slice(None, middle), slice(middle, None)):
                self._run_unit(asked, batch[half], rows[half], result)
        else:
            (index,) = asked.members
            logger.error(
                "member %s failed on a sample", self.spec.members[index].name, exc_info=error
            )
            shape = tuple(batch.shape[1:])
            result.fail(index, rows, f"it failed on a sample of {shape}: {error}")

    def _measure(self, batches: Sequence[Tensor]) -> None:
        """What each member, and each stack, takes for one sample on one thread."""
        for index, group in enumerate(self._group_of_member):
            alone = batches[group][:1]
            self.seconds[index] = self._pool.run(partial(_time, self._members[index], alone))
        for stack in self._stacks:
            alone = batches[self._group_of_member[stack.members[0]]][:1]
            self._seconds_as_one[stack.members] = self._pool.run(partial(_time, stack, alone))


@torch.inference_mode()
def _time(member: Callable[[Tensor], Tensor], batch: Tensor) -> float:
    """Seconds of the fastest run: the first one may still set things up, others be disturbed."""
    found: list[float] = []
    while len(found) < 2 or (len(found) < _RUNS and sum(found) < _LONG):
        started = time.perf_counter()
        member(batch).cpu()
        found.append(time.perf_counter() - started)
    return min(found)


def _ready(
    spec: EnsembleSpec,
    member: Member,
    folder: Path,
    batch: Tensor,
    compiled: CompiledMembers | None,
    threads: int,
) -> LoadedMember:
    """A member that was run on the trial images: compiled if possible, else as it was saved."""
    if compiled is not None:
        found = compiled.load(spec, member, batch, threads)
        if found is not None:
            return found
    loaded = load_member(spec, member, folder, batch.device)
    check_member(loaded, spec, member, batch)
    return accelerate(loaded, spec, member, batch)


class BatchInputs:
    """A batch of samples, preprocessed when the first member of a preprocessing asks for it."""

    def __init__(self, runtime: Runtime, images: Sequence[Input]) -> None:
        self._runtime = runtime
        self._images = images
        self._prepared: dict[int, Tensor] = {}

    @torch.inference_mode()
    def scores(self, member: int, rows: Tensor) -> Tensor:
        """(n, C) float32 scores of one member on some samples.

        Args:
            member: its position.
            rows: (n,) int64.

        Raises:
            MemberError: it fails, or gives NaN or infinity.
        """
        runtime = self._runtime
        shared = runtime._group_of_member[member]
        if shared not in self._prepared:
            self._prepared[shared] = runtime._inputs(shared, self._images)
        labels = len(runtime.spec.score_labels)
        shape = (len(runtime.spec.members), len(self._images), labels)
        result = MemberScores(
            scores=torch.full(shape, float("nan")),
            logits=torch.full(shape, float("nan")),
            states=torch.zeros(shape[:2], dtype=torch.uint8),
        )
        batch = self._prepared[shared][rows.to(runtime.device)]
        runtime._run_members([_Asked((member,), batch, rows)], result)
        if result.reasons:
            name = runtime.spec.members[member].name
            raise MemberError(f"member {name}: {next(iter(result.reasons.values()))}")
        return result.scores[member, rows]
