"""Compile members ahead of time (torch.export and AOTInductor), for machines like this one.

Small members of one architecture are tried fused, the others alone, and those that share a backbone
once more together. Every candidate goes the same way: it is compiled, its answers are compared with
those of the saved members, and it is timed against what would run without it (`trial`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..handlers.base.errors import MemberError
from ..handlers.deployment import choose_device
from ..handlers.inputs.preprocessing import Preprocessor, Resized, preprocessors_of
from ..handlers.inputs.sample_errors import SampleErrors
from ..handlers.members.aot_library import constants_path
from ..handlers.members.compiled_record import (
    FOLDER,
    OUTPUTS,
    RECORD,
    CompiledExecutable,
    CompiledRecord,
)
from ..handlers.members.eager_optimisations import accelerate, is_large, wants_bfloat16
from ..handlers.members.fused import FusedMembers, fuse, fusible_members
from ..handlers.members.loading import LoadedMember, load_member
from ..handlers.members.target import Target
from ..handlers.spec import EnsembleSpec, Precision
from .candidates import NUM_EXPORTED_SAMPLES, Candidates
from .libraries import NotCompiled, require_compiler
from .quantization import require_quantization
from .shared_backbone import sharing
from .trial import Kept, OtherAnswersError, Trial, require_faster

_NUM_EXAMPLES = 3
"""Example images whose outputs at build a worker compares its own with."""


@contextmanager
def compiled_members(
    spec: EnsembleSpec,
    folder: Path,
    *,
    samples: Sequence[Path] = (),
    report: Callable[[str], None] = print,
) -> Iterator[dict[str, Path]]:
    """Compile what can be compiled; the files are gone when the context ends.

    A member that is saved as TorchScript or ONNX, that torch.export cannot export, or that gives
    other answers when it is compiled, stays as it was saved, and the reason is reported.

    Args:
        spec: the ensemble.
        folder: where the files that the spec names are.
        samples: image files on which the answers of compiled and saved members are compared,
            beside the example images.
        report: called with a sentence about each member.

    Yields:
        Path beside the spec -> the file with its contents.

    Raises:
        MemberError: a member cannot be loaded, or ``precision: bfloat16`` is demanded and changes
            its answers.
        ArchiveError: this machine has no C++ compiler; or for int8 no torchao, or too few samples.
    """
    require_compiler()
    if spec.runtime.precision is Precision.INT8:
        require_quantization(len(samples))
    device = choose_device(spec, gpu=None)
    preprocessors, group_of_member = preprocessors_of(spec, folder, device)
    batches = [
        preprocessor(
            [
                *preprocessor.examples(_NUM_EXAMPLES),
                *(_decode_sample(path, preprocessor, spec) for path in samples),
            ]
        )
        for preprocessor in preprocessors
    ]
    loaded = [load_member(spec, member, folder, device) for member in spec.members]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / FOLDER).mkdir()
        compilation = _Compilation(spec, loaded, group_of_member, batches, work, report)
        compilation.try_fused_members()
        compilation.try_single_members()
        compilation.try_shared_backbones()
        yield compilation.files(Target.here(device))


def _decode_sample(path: Path, preprocessor: Preprocessor, spec: EnsembleSpec) -> Resized:
    """Decode an image file as the members of a preprocessing see it.

    Raises:
        SampleError: the file is not an image that can be read.
    """
    content = path.read_bytes()
    errors = SampleErrors.of(str(path), 0, content)
    max_pixels = spec.limits.max_pixels
    return preprocessor.resize(preprocessor.decoding.decode(content, errors, max_pixels=max_pixels))


@dataclass
class _Compilation:
    """The members of an ensemble, and what was kept so far.

    Attributes:
        spec: the ensemble.
        loaded: its members as they were saved.
        group_of_member: for each member the position of its preprocessing.
        batches: for each preprocessing the example inputs, and after them the samples.
        work: the folder that the names of compiled files start from.
        report: called with a sentence about each member.
        fused: kept executables of small members of one architecture.
        single: kept executables of one member, by its position.
        shared: kept executables of members that share a backbone.
        outputs: raw outputs of each compiled member for the example inputs, by name.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    group_of_member: Sequence[int]
    batches: Sequence[Tensor]
    work: Path
    report: Callable[[str], None]
    fused: list[Kept] = field(default_factory=list)
    single: dict[int, Kept] = field(default_factory=dict)
    shared: list[Kept] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self.spec, self.loaded, self.work)

    @cached_property
    def _trial(self) -> Trial:
        return Trial(self.spec, self.loaded, self.work)

    def try_fused_members(self) -> None:
        """Try small members of one architecture as one."""
        for positions in self._fusible():
            names = self._names(positions)
            subject = f"{names[0]} to {names[-1]} ({len(names)} of one architecture)"
            started = time.perf_counter()
            try:
                kept = self._try_fused(positions)
            except NotCompiled as reason:
                self.report(f"members {subject} are not compiled as one: {reason}")
                continue
            self.fused.append(kept)
            self._keep_outputs(kept)
            self.report(f"members {subject} compiled as one: their {_outcome(kept, started)}")

    def try_single_members(self) -> None:
        """Try each member that is not part of fused members."""
        for position, member in enumerate(self.spec.members):
            if member.name in self.outputs:
                continue
            started = time.perf_counter()
            try:
                kept = self._try_single(position)
            except NotCompiled as reason:
                self.report(f"member '{member.name}' is not compiled: {reason}")
                continue
            self.single[position] = kept
            self._keep_outputs(kept)
            self.report(
                f"member '{member.name}' compiled in {kept.entry.precision}: "
                f"its {_outcome(kept, started)}"
            )

    def try_shared_backbones(self) -> None:
        """Try members that share a backbone once more, as one."""
        in_fused = {name for kept in self.fused for name in kept.entry.members}
        for positions in sharing(self.spec, self.loaded, self.group_of_member):
            names = self._names(positions)
            if in_fused & set(names):
                continue
            started = time.perf_counter()
            subject = f"members {' and '.join(names)} share a backbone"
            try:
                kept = self._try_shared_backbone(positions)
            except NotCompiled as reason:
                self.report(f"{subject}, and run alone: {reason}")
                continue
            self.shared.append(kept)
            self._keep_outputs(kept)
            self.report(
                f"{subject}, compiled as one in {kept.entry.precision}: "
                f"their {_outcome(kept, started)}"
            )

    def files(self, target: Target) -> dict[str, Path]:
        """Write the record, and list the files of the archive.

        Args:
            target: the machine that the executables were compiled for.

        Returns:
            Path beside the spec -> the file; none where nothing was kept.
        """
        kept = [*self.fused, *self.shared, *self.single.values()]
        if not kept:
            return {}
        entries: tuple[CompiledExecutable, ...] = tuple(each.entry for each in kept)
        (self.work / RECORD).write_text(CompiledRecord(target, entries).to_json())
        save_file(self.outputs, self.work / OUTPUTS)
        libraries = [file for entry in entries for file in entry.files]
        constants = [str(constants_path(Path(library))) for library in libraries]
        names = [*libraries, *constants, RECORD, OUTPUTS]
        return {name: path for name in names if (path := self.work / name).exists()}

    def _fusible(self) -> list[tuple[int, ...]]:
        """Groups of members that a worker on a CPU fuses, unless they are accelerated instead."""
        if self.batches[0].device.type != "cpu":
            return []
        running = dict(enumerate(self.loaded))
        for positions in fusible_members(self.spec, running, self.group_of_member):
            for position in positions:
                running[position] = self._accelerated(position)
        return fusible_members(self.spec, running, self.group_of_member)

    @torch.no_grad()
    def _try_fused(self, positions: tuple[int, ...]) -> Kept:
        fused: FusedMembers | None = fuse(positions, dict(enumerate(self.loaded)))
        if fused is None:
            raise NotCompiled("their weights cannot be stacked")
        batch = self._batch(positions[0])
        return self._trial.of(self._candidates.fused(fused, batch), batch, fused)

    def _try_single(self, position: int) -> Kept:
        """The fastest executable of one member whose answers are right.

        Raises:
            NotCompiled: there is none.
            MemberError: ``precision: bfloat16`` is demanded and changes the member's answers.
        """
        member, module = self.spec.members[position], self.loaded[position].module
        if module is None or isinstance(module, torch.jit.ScriptModule):
            saved = str(member.weights_format)
            raise NotCompiled(f"it is saved as {saved}, and runs as that")
        self._require_tensor_output(position)
        on_cpu = self._batch(position).device.type == "cpu"
        if self.spec.runtime.precision is Precision.INT8 and on_cpu and is_large(module):
            return self._try_int8(position, module)
        return self._try_floating_point(position, module)

    @torch.no_grad()
    def _require_tensor_output(self, position: int) -> None:
        """Refuse a member whose network gives its postprocess more than one tensor.

        Raises:
            NotCompiled: a compiled library gives one tensor.
        """
        loaded = self.loaded[position]
        if loaded.postprocess is None:
            return
        raw = loaded.forward(self._batch(position)[:1])
        if not isinstance(raw, Tensor):
            raise NotCompiled(f"its forward gives {type(raw).__name__}, not one tensor")

    def _try_int8(self, position: int, module: nn.Module) -> Kept:
        """In int8, if that is right and faster than in floating point."""
        subject = f"member '{self.spec.members[position].name}'"
        try:
            quantized = self._try_precision(position, module, Precision.INT8)
        except NotCompiled as reason:
            self.report(f"{subject} does not run in int8: {reason}")
            return self._try_floating_point(position, module)
        try:
            other = self._try_floating_point(position, module)
        except NotCompiled:
            return quantized
        try:
            timed = self._batch(position)[:NUM_EXPORTED_SAMPLES]
            require_faster(quantized.run, other.run, timed)
        except NotCompiled as reason:
            precision = other.entry.precision
            self.report(f"{subject} does not run in int8, {precision} is as fast: {reason}")
            return other
        return quantized

    def _try_floating_point(self, position: int, module: nn.Module) -> Kept:
        """In bfloat16 where that is wanted and right, else in float32."""
        if wants_bfloat16(self.spec, module, self._batch(position).device):
            try:
                return self._try_precision(position, module, Precision.BFLOAT16)
            except OtherAnswersError as reason:
                if self.spec.runtime.precision is Precision.BFLOAT16:
                    raise MemberError(
                        f"member '{self.spec.members[position].name}': {reason}; set "
                        "runtime.precision to float32 or auto, or tolerance to more"
                    ) from None
        return self._try_precision(position, module, Precision.FLOAT32)

    def _try_precision(self, position: int, module: nn.Module, precision: Precision) -> Kept:
        batch = self._batch(position)
        calibration = batch[_NUM_EXAMPLES:]
        candidate = self._candidates.single(position, module, precision, batch, calibration)

        def baseline(inputs: Tensor) -> Tensor:
            return self._accelerated(position)(inputs)

        return self._trial.of(candidate, batch, baseline)

    @torch.no_grad()
    def _try_shared_backbone(self, positions: tuple[int, ...]) -> Kept:
        alone: list[Callable[[Tensor], Tensor]] = [
            self.single[position].run if position in self.single else self._accelerated(position)
            for position in positions
        ]
        compiled = [self.single[each].entry.precision for each in positions if each in self.single]
        # Not in int8, in which each member is calibrated alone.
        all_reduced = set(compiled) == {str(Precision.BFLOAT16)}
        precision = Precision.BFLOAT16 if all_reduced else Precision.FLOAT32
        batch = self._batch(positions[0])

        def one_by_one(inputs: Tensor) -> Tensor:
            for run in alone:
                result = run(inputs)
            return result

        candidate = self._candidates.shared_backbone(positions, precision, batch)
        return self._trial.of(candidate, batch, one_by_one)

    def _accelerated(self, position: int) -> LoadedMember:
        """The member as a worker would run it, which may change its module's layout."""
        if position not in self._accelerated_members:
            member = self.spec.members[position]
            self._accelerated_members[position] = accelerate(
                self.loaded[position], self.spec, member, self._batch(position)
            )
        return self._accelerated_members[position]

    @cached_property
    def _accelerated_members(self) -> dict[int, LoadedMember]:
        return {}

    def _keep_outputs(self, kept: Kept) -> None:
        """Keep the outputs for the example inputs; those that a member gives alone stay."""
        for name, raw in zip(kept.entry.members, kept.outputs, strict=True):
            self.outputs.setdefault(name, raw[:_NUM_EXAMPLES].cpu().contiguous())

    def _names(self, positions: Sequence[int]) -> list[str]:
        return [self.spec.members[position].name for position in positions]

    def _batch(self, position: int) -> Tensor:
        return self.batches[self.group_of_member[position]]


def _outcome(kept: Kept, started: float) -> str:
    seconds = time.perf_counter() - started
    return f"scores differ by at most {kept.entry.difference:.1e} ({seconds:.0f} s)"
