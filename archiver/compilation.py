"""Chooses the engine and the precision with which each member runs, for machines like this one.

Each member is tried alone. Members are also tried as one executable if they share a backbone, or if
they are small and have one architecture. For every candidate its files are made (`candidates`), its
answers are compared with those of the saved members, and it is timed in turns with what would run
without it (`trial`).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from ..handlers.base.errors import ArchiveError, MemberError
from ..handlers.deployment import choose_device
from ..handlers.engine.member_inputs import MemberInputs
from ..handlers.inputs.preprocessing import preprocessors_of
from ..handlers.members.compiled_record import (
    FOLDER,
    OUTPUTS,
    RECORD,
    CompiledExecutable,
    CompiledRecord,
)
from ..handlers.members.eager_optimisations import accelerate, is_large, wants_bfloat16
from ..handlers.members.fused import fuse, fusible_members
from ..handlers.members.loading import LoadedMember, load_member
from ..handlers.members.openvino_model import import_openvino
from ..handlers.members.target import Target
from ..handlers.spec import Engine, EnsembleSpec, Precision
from .candidates import CandidateFactory
from .libraries import require_compiler
from .not_compiled import NotCompiled, OtherAnswersError
from .quantization import require_quantization
from .shared_backbone import groups_with_shared_backbone
from .trial import MIN_SPEED_UP, Trial, VerifiedCandidate, milliseconds_in_turns, speed_up

_NUM_EXAMPLES = 3
"""Number of example images. A worker compares its outputs for them with the saved members'."""

_BASELINE = "torch"
"""Name, in the table and in the timing, of what runs without a candidate."""


@dataclass(frozen=True)
class Measurement:
    """One row of the build's table: a way to run one or several members.

    Attributes:
        members: names of the members, separated by commas.
        engine: name of the engine that computes them.
        precision: the precision that they compute in.
        milliseconds: median time for each of `TIMED_BATCH_SIZES`; None if it was not timed.
        difference: largest difference of a score from that of the saved members; None if it was
            not compared.
        outcome: ``chosen``, or the reason for which it was not chosen.
    """

    members: str
    engine: str
    precision: str
    milliseconds: tuple[float, ...] | None = None
    difference: float | None = None
    outcome: str = ""


@contextmanager
def compiled_members(
    spec: EnsembleSpec,
    folder: Path,
    *,
    probes: Mapping[str, bytes] | None = None,
    samples: Sequence[Path] = (),
    report: Callable[[str], None] = print,
) -> Iterator[dict[str, Path]]:
    """Make executables for the members that run faster with them, within a ``with`` block.

    A member stays as it was saved if the engine cannot run it, gives other answers or is no faster.
    ``engine: auto`` changes nothing on a GPU, where only ``engine: aot_inductor`` compiles. The
    files are removed when the block ends.

    Args:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.
        probes: the files of the archive's self-test, by name. The executables must pass it.
        samples: image files. The answers of the engine and of the saved members are compared on
            them, on the probes and on the example images.
        report: called with what is being done, and with a table of everything that was tried.

    Yields:
        Path relative to the spec -> the file with its contents.

    Raises:
        MemberError: a member cannot be loaded; ``precision: bfloat16`` is demanded and changes
            its answers; or ``engine: openvino`` is demanded and cannot run it.
        ArchiveError: the engine or the precision needs a package or a compiler that is missing
            here, or more samples.
    """
    device = choose_device(spec, gpu=None)
    _require_engine(spec, device)
    if spec.runtime.engine is Engine.AUTO and device.type != "cpu":
        yield {}
        return
    if spec.runtime.precision is Precision.INT8:
        require_quantization(len(samples))
    preprocessors, group_of_member = preprocessors_of(spec, folder, device)
    inputs = MemberInputs(preprocessors, group_of_member, device)
    images = inputs.examples(_NUM_EXAMPLES)
    files = dict(probes or {}) | {str(path): path.read_bytes() for path in samples}
    for name, content in files.items():
        images.append(inputs.prepare_file(content, name, max_pixels=spec.limits.max_pixels))
    batches = [inputs.batch(group, images) for group in range(len(preprocessors))]
    loaded = [load_member(spec, member, folder, device) for member in spec.members]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / FOLDER).mkdir()
        candidates = CandidateFactory(spec, folder, loaded, work, device)
        selection = _Selection(
            spec, loaded, group_of_member, batches, len(samples), work, candidates, report
        )
        selection.try_small_members()
        selection.try_single_members()
        selection.try_shared_backbones()
        report(selection.table())
        yield selection.files(Target.here(device))


def _require_engine(spec: EnsembleSpec, device: torch.device) -> None:
    """Check that the engine that the spec demands can be used for the device.

    Raises:
        ArchiveError: the engine is for another device, or needs a compiler that is missing.
        MemberError: OpenVINO is not installed.
    """
    engine = spec.runtime.engine
    if engine is Engine.AOT_INDUCTOR:
        if device.type == "cpu":
            raise ArchiveError(
                "runtime.engine: aot_inductor is for a GPU, and the members run on the CPU here: "
                "set engine to auto"
            )
        require_compiler()
    elif device.type == "cpu":
        import_openvino()
    elif engine is Engine.OPENVINO:
        raise ArchiveError(
            "runtime.engine: openvino is for the CPU, and the members run on a GPU here: set "
            "runtime.device to cpu, or engine to auto"
        )


@dataclass
class _Selection:
    """The members of an ensemble, and the executables that have been chosen for them so far.

    Attributes:
        spec: the ensemble.
        loaded: the ensemble's members as they were saved.
        group_of_member: for each member the position of its preprocessing.
        batches: for each preprocessing the example inputs followed by the probes and the samples,
            float32 (N, channels, height, width).
        num_samples: number of samples at the end of each batch.
        work: the folder in which candidates write their files.
        candidates: describes the candidates.
        report: called with what is being done.
        single: position of a member -> the executable that was chosen for this member alone.
        joint: executables that were chosen for several members at once.
        measurements: rows of the table.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    group_of_member: Sequence[int]
    batches: Sequence[Tensor]
    num_samples: int
    work: Path
    candidates: CandidateFactory
    report: Callable[[str], None]
    single: dict[int, VerifiedCandidate] = field(default_factory=dict)
    joint: list[VerifiedCandidate] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    _accelerated: dict[int, LoadedMember] = field(default_factory=dict)

    @cached_property
    def _trial(self) -> Trial:
        return Trial(self.spec, self.loaded, self.work)

    def try_small_members(self) -> None:
        """Try small members of one architecture as one executable.

        Without it a worker would fuse them, so the fused members are the baseline.
        """
        member_at = dict(enumerate(self.loaded))
        for positions in fusible_members(self.spec, member_at, self.group_of_member):
            modules = [self.loaded[position].module for position in positions]
            # Large members gain more from the memory layout and the precision that each gets alone.
            if any(module is None or is_large(module) for module in modules):
                continue
            fused = fuse(positions, member_at)
            if fused is None:
                continue
            chosen = self._choose(positions, [Precision.FLOAT32], fused)
            if chosen is not None:
                self.joint.append(chosen)

    def try_single_members(self) -> None:
        """Try each member that is not part of a joint executable.

        Raises:
            MemberError: a member cannot run in the precision or with the engine that the spec
                demands.
        """
        in_joint = self._in_joint()
        for position, member in enumerate(self.spec.members):
            if position in in_joint:
                continue
            chosen = self._choose((position,), self._precisions(position), self._saved(position))
            if chosen is not None:
                self.single[position] = chosen
            elif self.spec.runtime.engine is Engine.OPENVINO:
                raise MemberError(
                    f"member '{member.name}' cannot run with OpenVINO: "
                    f"{self.measurements[-1].outcome}; set runtime.engine to auto, and it runs "
                    "with torch"
                )

    def try_shared_backbones(self) -> None:
        """Try members that share a backbone as one executable, which computes it only once."""
        in_joint = self._in_joint()
        for positions in groups_with_shared_backbone(self.spec, self.loaded, self.group_of_member):
            if in_joint & set(positions):
                continue
            chosen = self._choose(
                positions, [self._joint_precision(positions)], self._one_by_one(positions)
            )
            if chosen is not None:
                self.joint.append(chosen)

    def table(self) -> str:
        """Return everything that was tried, as a table of plain text."""
        table = Table("member", "engine", "precision", "1 sample", "8 samples", "difference", "")
        for row in self.measurements:
            milliseconds = [f"{each:.3g} ms" for each in row.milliseconds or ()] or ["", ""]
            difference = "" if row.difference is None else f"{row.difference:.1e}"
            table.add_row(
                row.members, row.engine, row.precision, *milliseconds, difference, row.outcome
            )
        console = Console(file=io.StringIO(), width=120)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def files(self, target: Target) -> dict[str, Path]:
        """Write the record of the chosen executables, and list all files that the archive needs.

        Args:
            target: description of this machine, for which machine code was compiled.

        Returns:
            Path relative to the spec -> the file; empty if no executable was chosen.
        """
        chosen = [*self.joint, *self.single.values()]
        if not chosen:
            return {}
        entries: tuple[CompiledExecutable, ...] = tuple(each.entry for each in chosen)
        (self.work / RECORD).write_text(CompiledRecord(target, entries).to_json())
        outputs: dict[str, Tensor] = {}
        for each in chosen:
            for name, raw in zip(each.entry.members, each.saved_outputs, strict=True):
                outputs[name] = raw[:_NUM_EXAMPLES].cpu().contiguous()
        save_file(outputs, self.work / OUTPUTS)
        names = [*(file for entry in entries for file in entry.files), RECORD, OUTPUTS]
        return {name: self.work / name for name in names}

    def _choose(
        self,
        positions: tuple[int, ...],
        precisions: Sequence[Precision],
        baseline: Callable[[Tensor], object],
    ) -> VerifiedCandidate | None:
        """Return the fastest candidate with right answers; None if the baseline is as fast.

        Precisions are tried in turn until one other than int8 gives right answers. If int8 gives
        right answers, too, the faster of the two is returned. If the spec demands an engine, a
        candidate for a single member is returned even if it is slower than the baseline.

        Args:
            positions: positions of the members in the ensemble.
            precisions: the precisions to try, in the order of preference.
            baseline: function that computes the members as they would run without a candidate.

        Raises:
            MemberError: ``precision: bfloat16`` is demanded and changes the members' answers.
        """
        names = ", ".join(self.spec.members[position].name for position in positions)
        self.report(f"{names}: trying {self.candidates.engine}")
        batch = self.batches[self.group_of_member[positions[0]]]
        verified: dict[str, VerifiedCandidate] = {}
        rows: list[Measurement] = []
        for precision in precisions:
            candidate = self.candidates.candidate(
                positions, precision, batch, calibration=batch[len(batch) - self.num_samples :]
            )
            row = Measurement(names, str(candidate.engine), str(precision))
            try:
                verified[str(precision)] = self._trial.verify(candidate, batch)
            except NotCompiled as reason:
                difference = reason.difference if isinstance(reason, OtherAnswersError) else None
                rows.append(replace(row, difference=difference, outcome=str(reason)))
                if difference is not None and self.spec.runtime.precision is Precision.BFLOAT16:
                    raise MemberError(
                        f"member '{names}': {reason}; set runtime.precision to float32 or auto, "
                        "or raise runtime.tolerance"
                    ) from None
                continue
            rows.append(row)
            if precision is not Precision.INT8:
                break
        runs: dict[str, Callable[[Tensor], object]] = {_BASELINE: baseline}
        runs |= {name: each.run for name, each in verified.items()}
        milliseconds = milliseconds_in_turns(runs, batch)
        speed_ups = {
            name: speed_up(milliseconds[name], milliseconds[_BASELINE]) for name in verified
        }
        best = max(speed_ups, key=lambda name: speed_ups[name], default=None)
        is_demanded = self.spec.runtime.engine is not Engine.AUTO and len(positions) == 1
        if best is not None and speed_ups[best] < MIN_SPEED_UP and not is_demanded:
            best = None
        baseline_row = Measurement(
            names,
            _BASELINE,
            str(self._precision_of_saved(positions[0])),
            milliseconds[_BASELINE],
            outcome="chosen" if best is None else "slower",
        )
        self.measurements.append(baseline_row)
        for row in rows:
            candidate_of_row = verified.get(row.precision)
            if candidate_of_row is not None:
                row = replace(
                    row,
                    difference=candidate_of_row.entry.difference,
                    milliseconds=milliseconds[row.precision],
                    outcome="chosen" if row.precision == best else "no faster",
                )
            self.measurements.append(row)
        return None if best is None else verified[best]

    def _precisions(self, position: int) -> list[Precision]:
        """Return the precisions to try for a member, in the order of preference."""
        batch = self.batches[self.group_of_member[position]]
        module = self.loaded[position].module
        demanded = self.spec.runtime.precision
        if demanded is Precision.FLOAT32 or module is None:
            return [Precision.FLOAT32]
        if demanded is Precision.BFLOAT16:
            return [Precision.BFLOAT16]
        precisions = [Precision.FLOAT32]
        if wants_bfloat16(self.spec, module, batch.device):
            precisions.insert(0, Precision.BFLOAT16)
        if demanded is Precision.INT8:
            precisions.insert(0, Precision.INT8)
        return precisions

    def _precision_of_saved(self, position: int) -> Precision:
        """Return the precision in which torch runs a saved member."""
        module = self.loaded[position].module
        device = self.batches[0].device
        is_bfloat16 = module is not None and wants_bfloat16(self.spec, module, device)
        return Precision.BFLOAT16 if is_bfloat16 else Precision.FLOAT32

    def _joint_precision(self, positions: Sequence[int]) -> Precision:
        """Return bfloat16 if it was chosen for every one of the members alone, else float32.

        A joint executable is never quantized to int8, because members are calibrated one by one.
        """
        alone = {self.single[each].entry.precision for each in positions if each in self.single}
        return Precision.BFLOAT16 if alone == {str(Precision.BFLOAT16)} else Precision.FLOAT32

    def _one_by_one(self, positions: Sequence[int]) -> Callable[[Tensor], object]:
        """Return a function that runs members one after another, in the ways chosen so far."""
        runs: list[Callable[[Tensor], Tensor]] = [
            self.single[position].run if position in self.single else self._saved(position)
            for position in positions
        ]
        return lambda batch: [run(batch) for run in runs]

    def _saved(self, position: int) -> Callable[[Tensor], Tensor]:
        """Return a function that runs a member as a worker would run it with torch.

        This may change the memory layout of the member's module.
        """
        batch = self.batches[self.group_of_member[position]]
        if position not in self._accelerated:
            self._accelerated[position] = accelerate(
                self.loaded[position], self.spec, self.spec.members[position], batch
            )
        return self._accelerated[position]

    def _in_joint(self) -> set[int]:
        """Return the positions of the members that a joint executable computes."""
        names = {name for each in self.joint for name in each.entry.members}
        return {i for i, member in enumerate(self.spec.members) if member.name in names}
