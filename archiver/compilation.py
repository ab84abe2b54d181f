"""Chooses the engine and the precision with which each member runs, for machines like this one.

Each member is tried alone. Members are also tried as one executable if they share a backbone, or if
they are small and have one architecture. For every candidate its files are made (`candidates`), its
answers are compared with those of the saved members, and it is timed in turns with what would run
without it (`trial`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
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
from .candidates import Candidate, CandidateFactory
from .libraries import require_compiler
from .measurement import Measurement, table_of
from .metric_proof import MetricLoss, ProofMaker
from .not_compiled import NotCompiled, OtherAnswersError
from .quantization import require_quantization
from .saved_members import SavedMembers, free_memory
from .shared_backbone import groups_with_shared_backbone
from .trial import (
    MIN_SPEED_UP,
    ChosenCandidate,
    Trial,
    VerifiedCandidate,
    milliseconds_in_turns,
    outputs_of,
    speed_up,
)

_NUM_EXAMPLES = 3
"""Number of example images. A worker compares its outputs for them with the saved members'."""

_CHOSEN = "chosen"

_BASELINE = "torch"
"""Name, in the table and in the timing, of what runs without a candidate."""


@contextmanager
def compiled_members(
    spec: EnsembleSpec,
    folder: Path,
    *,
    probes: Mapping[str, bytes] | None = None,
    samples: Sequence[Path] = (),
    make_proof: ProofMaker | None = None,
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
        make_proof: makes the proof, by labelled images, that lower precision decides as well. With
            it ``precision: auto`` also tries int8.
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
    if spec.runtime.precision is Precision.INT8 or (
        make_proof is not None and spec.runtime.precision is Precision.AUTO
    ):
        require_quantization(len(samples))
    preprocessors, group_of_member = preprocessors_of(spec, folder, device)
    inputs = MemberInputs(preprocessors, group_of_member, device)
    images = inputs.examples(_NUM_EXAMPLES)
    files = dict(probes or {}) | {str(path): path.read_bytes() for path in samples}
    for name, content in files.items():
        images.append(inputs.prepare_file(content, name, max_pixels=spec.limits.max_pixels))
    batches = [inputs.batch(group, images) for group in range(len(preprocessors))]
    loaded = SavedMembers(
        spec, folder, lambda each: load_member(spec, spec.members[each], folder, device)
    )
    proof = None if make_proof is None else make_proof(spec, folder, loaded, inputs)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / FOLDER).mkdir()
        candidates = CandidateFactory(spec, folder, loaded, work, device)
        trial = Trial(spec, loaded, work, proof)
        selection = _Selection(
            spec, loaded, group_of_member, batches, len(samples), trial, candidates, report
        )
        selection.try_small_members()
        selection.try_single_members()
        selection.prove_lower_precision()
        selection.try_shared_backbones()
        report(table_of(selection.measurements))
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


@dataclass(frozen=True)
class _Choice:
    """How members run, and how they run if a proof fails.

    Attributes:
        best: the fastest candidate with right answers; None if the baseline is as fast.
        fallback: the fastest one that needs no proof; None if the baseline is as fast.
    """

    best: ChosenCandidate | None
    fallback: ChosenCandidate | None


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
        trial: compares candidates with the saved members.
        candidates: describes the candidates.
        report: called with what is being done.
        single: position of a member -> the executable that was chosen for this member alone.
        unproven: position of a member whose executable in `single` needs a proof -> its choice.
        joint: executables that were chosen for several members at once.
        measurements: rows of the table.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    group_of_member: Sequence[int]
    batches: Sequence[Tensor]
    num_samples: int
    trial: Trial
    candidates: CandidateFactory
    report: Callable[[str], None]
    single: dict[int, ChosenCandidate] = field(default_factory=dict)
    unproven: dict[int, _Choice] = field(default_factory=dict)
    joint: list[ChosenCandidate] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    def try_small_members(self) -> None:
        """Try small members of one architecture as one executable.

        Without it a worker would fuse them, so the fused members are the baseline.
        """
        # Large members gain more from the memory layout and the precision that each gets alone.
        member_at = {
            position: each
            for position, each in enumerate(self.loaded)
            if each.module is not None and not is_large(each.module)
        }
        for positions in fusible_members(self.spec, member_at, self.group_of_member):
            fused = fuse(positions, member_at)
            if fused is None:
                continue
            chosen = self._choose(positions, [Precision.FLOAT32], fused).best
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
            choice = self._choose((position,), self._precisions(position), self._saved(position))
            free_memory()
            if choice.best is not None:
                self.single[position] = choice.best
                if choice.best.development_loss is not None:
                    self.unproven[position] = choice
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
            ).best
            if chosen is not None:
                self.joint.append(chosen)

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
        (self.trial.work / RECORD).write_text(CompiledRecord(target, entries).to_json())
        outputs: dict[str, Tensor] = {}
        for each in chosen:
            for name, raw in zip(each.entry.members, each.saved_outputs, strict=True):
                outputs[name] = raw[:_NUM_EXAMPLES].cpu().contiguous()
        save_file(outputs, self.trial.work / OUTPUTS)
        names = [*(file for entry in entries for file in entry.files), RECORD, OUTPUTS]
        return {name: self.trial.work / name for name in names}

    def _choose(
        self,
        positions: tuple[int, ...],
        precisions: Sequence[Precision],
        baseline: Callable[[Tensor], object],
    ) -> _Choice:
        """Choose the fastest way to run members among those whose answers are right.

        Precisions are tried in turn until one other than int8 gives right answers that need no
        proof. If the spec demands an engine, a candidate for a single member is chosen even if it
        is slower than the baseline.

        Args:
            positions: positions of the members in the ensemble.
            precisions: the precisions to try, in the order of preference.
            baseline: function that computes the members as they would run without a candidate.

        Raises:
            MemberError: ``precision: bfloat16`` is demanded and changes the members' answers.
        """
        names = self._names(positions)
        self.report(f"{names}: trying {self.candidates.engine}")
        batch = self.batches[self.group_of_member[positions[0]]]
        verified: dict[str, VerifiedCandidate] = {}
        rows: list[Measurement] = []
        for precision in precisions:
            found = self._verify_one(positions, precision, batch, rows)
            if found is not None:
                verified[found.label] = found
                if precision is not Precision.INT8 and found.development_loss is None:
                    break
        runs: dict[str, Callable[[Tensor], object]] = {_BASELINE: baseline}
        runs |= {label: each.run for label, each in verified.items()}
        milliseconds = milliseconds_in_turns(runs, batch)
        is_demanded = self.spec.runtime.engine is not Engine.AUTO and len(positions) == 1
        speed_ups = {
            label: speed_up(milliseconds[label], milliseconds[_BASELINE]) for label in verified
        }
        fast = [label for label in verified if is_demanded or speed_ups[label] >= MIN_SPEED_UP]
        without_proof = [label for label in fast if verified[label].development_loss is None]
        best = max(fast, key=lambda label: speed_ups[label], default=None)
        fallback = max(without_proof, key=lambda label: speed_ups[label], default=None)
        baseline_row = Measurement(
            names,
            _BASELINE,
            str(self._precision_of_saved(positions[0])),
            milliseconds[_BASELINE],
            outcome=_CHOSEN if best is None else "slower than the best",
        )
        self.measurements.append(baseline_row)
        for row in rows:
            candidate_of_row = verified.get(row.precision)
            if candidate_of_row is not None:
                row = replace(
                    row,
                    difference=candidate_of_row.entry.difference,
                    milliseconds=milliseconds[row.precision],
                    outcome=_CHOSEN if row.precision == best else "no faster than the best",
                )
            self.measurements.append(row)
        return _Choice(
            None if best is None else verified[best].without_run(),
            None if fallback is None else verified[fallback].without_run(),
        )

    def _verify_one(
        self,
        positions: tuple[int, ...],
        precision: Precision,
        batch: Tensor,
        rows: list[Measurement],
    ) -> VerifiedCandidate | None:
        """Return a candidate of one precision whose answers are right, or None.

        If a member that is quantized as a whole answers otherwise, it is quantized in part.

        Args:
            positions: positions of the members in the ensemble.
            precision: the precision to try.
            batch: the example inputs and samples.
            rows: gets a row for each candidate that was tried.

        Raises:
            MemberError: ``precision: bfloat16`` is demanded and changes the members' answers.
        """
        for candidate in self._candidates(positions, precision, batch):
            row = Measurement(self._names(positions), str(candidate.engine), candidate.label)
            try:
                found = self.trial.verify(candidate, batch)
            except NotCompiled as reason:
                difference = reason.difference if isinstance(reason, OtherAnswersError) else None
                rows.append(replace(row, difference=difference, outcome=str(reason)))
                if difference is None:
                    return None
                if self.spec.runtime.precision is Precision.BFLOAT16:
                    raise MemberError(
                        f"member '{row.members}': {reason}; set runtime.precision to float32 or "
                        "auto, or raise runtime.tolerance"
                    ) from None
                continue
            rows.append(row)
            return found
        return None

    def _candidates(
        self, positions: tuple[int, ...], precision: Precision, batch: Tensor
    ) -> Iterator[Candidate]:
        """Yield the candidates of one precision, in the order in which they are tried."""
        calibration = batch[len(batch) - self.num_samples :]
        yield self.candidates.candidate(positions, precision, batch, calibration)
        if precision is Precision.INT8:
            goal = self.trial.accuracy_goal(positions[0], batch)
            yield self.candidates.candidate(positions, precision, batch, calibration, goal)

    def prove_lower_precision(self) -> None:
        """Keep lower precision only as far as the held-out images prove that decisions stay right.

        Members take their turns in an order that the development images decide, and each proof is
        about all members up to it. The first one that fails ends the sequence. No correction for
        several tests is needed (fixed sequence testing: Maurer, Hothorn and Lehmacher 1995).

        Raises:
            MemberError: ``precision: bfloat16`` is demanded and a proof failed.
        """
        proof = self.trial.proof
        if proof is None:
            return
        order = sorted(self.unproven, key=lambda each: self.single[each].development_loss or 0.0)
        outputs: dict[int, Tensor] = {}
        for number, position in enumerate(order):
            device = self.batches[0].device
            run = self.trial.load(self.single[position].entry, (position,), device)
            outputs[position] = outputs_of(run, proof.held_out_inputs(position))[0]
            loss = proof.loss(outputs)
            names = self._names(order[: number + 1])
            self.report(f"{names} in lower precision: {loss}")
            if not loss.upper_bound <= proof.max_loss:
                for unproven in order[number:]:
                    self._take_back(unproven, loss)
                return
            for proven in order[: number + 1]:
                chosen = self.single[proven]
                entry = replace(chosen.entry, metric_loss=loss.upper_bound)
                self.single[proven] = replace(chosen, entry=entry)

    def _take_back(self, position: int, loss: MetricLoss) -> None:
        """Let a member run in the best way that needs no proof."""
        name = self.spec.members[position].name
        problem = f"{loss.upper_bound:.2%} may be decided worse, not proven"
        if self.spec.runtime.precision is Precision.BFLOAT16:
            raise MemberError(
                f"member '{name}': in bfloat16 {problem}; set runtime.precision to float32 or auto"
            )
        fallback = self.unproven[position].fallback
        outcomes = {
            self.single[position].label: problem,
            _BASELINE if fallback is None else fallback.label: _CHOSEN,
        }
        for index, row in enumerate(self.measurements):
            label = _BASELINE if row.engine == _BASELINE else row.precision
            if row.members == name and label in outcomes:
                self.measurements[index] = replace(row, outcome=outcomes[label])
        if fallback is None:
            del self.single[position]
        else:
            self.single[position] = fallback

    def _names(self, positions: Sequence[int]) -> str:
        return ", ".join(self.spec.members[position].name for position in positions)

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
        if demanded is Precision.INT8 or self.trial.proof is not None:
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
            self.trial.load(self.single[position].entry, (position,), self.batches[0].device)
            if position in self.single
            else self._saved(position)
            for position in positions
        ]
        return lambda batch: [run(batch) for run in runs]

    def _saved(self, position: int) -> Callable[[Tensor], Tensor]:
        """Return a function that runs a member as a worker would run it with torch.

        This may change the memory layout of the member's module.
        """
        batch = self.batches[self.group_of_member[position]]
        return accelerate(self.loaded[position], self.spec, self.spec.members[position], batch)

    def _in_joint(self) -> set[int]:
        """Return the positions of the members that a joint executable computes."""
        names = {name for each in self.joint for name in each.entry.members}
        return {i for i, member in enumerate(self.spec.members) if member.name in names}
