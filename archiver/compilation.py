"""Compile members ahead of time (torch.export and AOTInductor), for machines like this one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..handlers.base.errors import MemberError
from ..handlers.deployment import choose_device
from ..handlers.inputs.example_inputs import trial_images
from ..handlers.inputs.preprocessing import preprocessors_of
from ..handlers.members.aot_library import constants_path
from ..handlers.members.compiled import (
    FOLDER,
    OUTPUTS,
    RECORD,
    CompiledMember,
    CompiledRecord,
    CompiledStack,
    CompiledTrunk,
    StackLibrary,
    Target,
    load_library,
)
from ..handlers.members.eager_optimisations import accelerate, is_large, wants_bfloat16
from ..handlers.members.fused import alike, stack_of
from ..handlers.members.loading import LoadedMember, difference, load_member
from ..handlers.spec import EnsembleSpec, Member, Precision
from .libraries import (
    Autocast,
    NotCompiled,
    compile_library,
    require_compiler,
    require_faster,
    torchs_errors,
)
from .quantization import quantized, require_quantization
from .shared_backbone import Joint, sharing

# Two differing samples: torch.export would take a batch of one for a constant.
_EXPORTED_WITH = 2
# What is between is put together from these, and padded.
_STACKED_SAMPLES = (4, 16)


@contextmanager
def compiled_members(
    spec: EnsembleSpec,
    folder: Path,
    *,
    samples: Sequence[Tensor] = (),
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Path]]:
    """Compile what can be compiled; the files are gone when the context ends.

    A member that is saved as TorchScript or ONNX, that torch.export cannot export, or whose
    compiled form answers otherwise, stays as it is, and `say` is told why.

    Args:
        spec: the ensemble.
        folder: where the files that it names are.
        samples: decoded images, uint8 (3, height, width), to compare the answers of compiled and
            saved members on, beside the trial images.
        say: told what became of each member.

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
    preprocessors, positions = preprocessors_of(spec, folder, device)
    trials = trial_images(3)
    batches = [preprocessor([*trials, *samples]) for preprocessor in preprocessors]
    loaded = [load_member(spec, member, folder, device) for member in spec.members]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / FOLDER).mkdir()
        compilation = _Compilation(spec, loaded, positions, batches, len(trials), work, say)
        compilation.compile_stacks()
        compilation.compile_members()
        compilation.compile_trunks()
        yield compilation.files(Target.here(device))


@dataclass
class _Compilation:
    """What became of the members so far.

    Attributes:
        spec: the ensemble.
        loaded: its members.
        group_of_member: for each the position of its preprocessing.
        batches: for each preprocessing the trial images and after them the samples.
        trials: how many trial images there are.
        work: where the libraries go, below `FOLDER`.
        say: told what became of each member.
        members: those compiled alone, by name.
        stacks: small members of one architecture, compiled as one.
        trunks: members that share a backbone, compiled as one.
        outputs: of each compiled member for the trial images.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    group_of_member: Sequence[int]
    batches: Sequence[Tensor]
    trials: int
    work: Path
    say: Callable[[str], None]
    members: dict[str, CompiledMember] = field(default_factory=dict)
    stacks: list[CompiledStack] = field(default_factory=list)
    trunks: list[CompiledTrunk] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def compile_stacks(self) -> None:
        """Small members of one architecture."""
        for together in _alike(self.spec, self.loaded, self.group_of_member, self.batches):
            started = time.perf_counter()
            names = self._names(together)
            known_as = f"{names[0]} to {names[-1]} ({len(names)} of one architecture)"
            try:
                stack, found = compile_stack(
                    self.spec, together, self.loaded, self._batch(together[0]), self.work
                )
            except NotCompiled as reason:
                self.say(f"members {known_as} are not compiled as one: {reason}")
                continue
            self.stacks.append(stack)
            self._keep(names, found)
            self.say(
                f"members {known_as} compiled as one: their {_told(stack.difference, started)}"
            )

    def compile_members(self) -> None:
        """Those that are in no stack."""
        for index, member in enumerate(self.spec.members):
            if member.name in self.outputs:
                continue
            started = time.perf_counter()
            compiler = _Compiler(
                spec=self.spec,
                member=member,
                loaded=self.loaded[index],
                batch=self._batch(index),
                trials=self.trials,
                work=self.work,
                say=self.say,
            )
            try:
                entry, found = compiler.best()
            except NotCompiled as reason:
                self.say(f"member '{member.name}' is not compiled: {reason}")
                continue
            self.members[member.name] = entry
            self._keep([member.name], found.unsqueeze(0))
            self.say(
                f"member '{member.name}' compiled in {entry.precision}: "
                f"its {_told(entry.difference, started)}"
            )

    def compile_trunks(self) -> None:
        """Those that share a backbone, once more as one."""
        stacked = {name for stack in self.stacks for name in stack.members}
        for together in sharing(self.spec, self.loaded, self.group_of_member):
            names = self._names(together)
            if stacked & set(names):
                continue
            started = time.perf_counter()
            batch = self._batch(together[0])
            known_as = f"members {' and '.join(names)} share a backbone"
            try:
                trunk, found = compile_trunk(
                    self.spec, together, self.loaded, self.members, batch, self.work
                )
            except NotCompiled as reason:
                self.say(f"{known_as}, and run alone: {reason}")
                continue
            self.trunks.append(trunk)
            self._keep(names, found)
            self.say(
                f"{known_as}, compiled as one in {trunk.precision}: "
                f"their {_told(trunk.difference, started)}"
            )

    def files(self, target: Target) -> dict[str, Path]:
        """Path beside the spec -> the file; none where nothing was compiled."""
        libraries = [entry.file for entry in self.members.values()]
        libraries += [file for stack in self.stacks for file in stack.files]
        libraries += [trunk.file for trunk in self.trunks]
        if not libraries:
            return {}
        record = CompiledRecord(target, self.members, tuple(self.stacks), tuple(self.trunks))
        (self.work / RECORD).write_text(record.to_json())
        save_file(self.outputs, self.work / OUTPUTS)
        lists = [str(constants_path(Path(library))) for library in libraries]
        names = [*libraries, *lists, RECORD, OUTPUTS]
        return {name: path for name in names if (path := self.work / name).exists()}

    def _names(self, positions: Sequence[int]) -> list[str]:
        return [self.spec.members[i].name for i in positions]

    def _batch(self, member: int) -> Tensor:
        return self.batches[self.group_of_member[member]]

    def _keep(self, names: Sequence[str], found: Tensor) -> None:
        """The members' outputs for the trial images, which a worker compares its own with.

        Those that a member gives alone stay.
        """
        for name, raw in zip(names, found, strict=True):
            self.outputs.setdefault(name, raw[: self.trials].cpu().contiguous())


def _told(difference: float, started: float) -> str:
    seconds = time.perf_counter() - started
    return f"scores differ by at most {difference:.1e} ({seconds:.0f} s)"


def _alike(
    spec: EnsembleSpec,
    loaded: Sequence[LoadedMember],
    group_of_member: Sequence[int],
    batches: Sequence[Tensor],
) -> list[tuple[int, ...]]:
    """The members that a worker on a CPU stacks: as many as keep their layout and precision."""
    if batches[0].device.type != "cpu":
        return []
    running = list(loaded)
    for positions in alike(spec, loaded, group_of_member):
        for i in positions:
            batch = batches[group_of_member[i]]
            running[i] = accelerate(loaded[i], spec, spec.members[i], batch)
    return alike(spec, running, group_of_member)


class _OtherAnswers(NotCompiled):
    """It answers otherwise than the member."""


@dataclass
class _Compiler:
    """Finds the fastest form of one member that answers as the member does.

    Attributes:
        spec: the ensemble.
        member: one of its members.
        loaded: as it was saved.
        batch: the trial images and after them the samples, float32 (N, channels, height, width).
        trials: how many trial images there are; int8 is calibrated on the samples alone.
        work: where the libraries go, below `FOLDER`.
        say: told why the member does not run in int8.
    """

    spec: EnsembleSpec
    member: Member
    loaded: LoadedMember
    batch: Tensor
    trials: int
    work: Path
    say: Callable[[str], None]

    @cached_property
    def _most(self) -> int:
        return _most(self.spec)

    @cached_property
    def _expected(self) -> Tensor:
        return self.loaded(self.batch)

    @cached_property
    def _saved(self) -> LoadedMember:
        """The member as a worker would run it, which may change the module's layout."""
        return accelerate(self.loaded, self.spec, self.member, self.batch)

    @torch.no_grad()
    def best(self) -> tuple[CompiledMember, Tensor]:
        """What is known of the library, and its outputs for the batch.

        Raises:
            NotCompiled: there is none.
            MemberError: ``precision: bfloat16`` is demanded and changes its answers.
        """
        module = self.loaded.module
        if module is None or isinstance(module, torch.jit.ScriptModule):
            saved = str(self.member.weights_format)
            raise NotCompiled(f"it is saved as {saved}, and runs as that")
        wanted = self.spec.runtime.precision
        if wanted is Precision.INT8 and self.batch.device.type == "cpu" and is_large(module):
            return self._with_int8(module)
        return self._with_floats(module)

    def _with_int8(self, module: nn.Module) -> tuple[CompiledMember, Tensor]:
        """In int8 if that is right and faster than in floating point."""
        known_as = f"member '{self.member.name}'"
        try:
            entry, found = self._form(module, Precision.INT8)
        except NotCompiled as reason:
            self.say(f"{known_as} does not run in int8: {reason}")
            return self._with_floats(module)
        try:
            other, others = self._with_floats(module)
        except NotCompiled:
            return entry, found
        try:
            require_faster(self._load(entry), self._load(other), self.batch[:_EXPORTED_WITH])
        except NotCompiled as reason:
            self.say(f"{known_as} does not run in int8, {other.precision} is as fast: {reason}")
            return other, others
        return entry, found

    def _with_floats(self, module: nn.Module) -> tuple[CompiledMember, Tensor]:
        """In bfloat16 where that is wanted and right, else in float32."""
        if wants_bfloat16(self.spec, module, self.batch.device):
            try:
                return self._form(module, Precision.BFLOAT16)
            except _OtherAnswers as reason:
                if self.spec.runtime.precision is Precision.BFLOAT16:
                    raise MemberError(
                        f"member '{self.member.name}': {reason}; set runtime.precision to "
                        "float32 or auto, or tolerance to more"
                    ) from None
        return self._form(module, Precision.FLOAT32)

    def _form(self, module: nn.Module, precision: Precision) -> tuple[CompiledMember, Tensor]:
        """One form, and its outputs for the batch.

        Raises:
            NotCompiled: torch cannot, its answers differ, or it is no faster than the member as
                a worker would run it.
        """
        entry = CompiledMember(
            file=self._compile(module, precision),
            precision=str(precision),
            shape=tuple(self.batch.shape[1:]),
            most=self._most,
            difference=0.0,
        )
        library = self._load(entry)
        # There may be more samples than fit at once.
        found = torch.cat([library(part) for part in torch.split(self.batch, self._most)])
        changed = difference(self._expected, found, self.spec, self.member)
        most = self.spec.runtime.tolerance
        if not changed <= most:
            raise _OtherAnswers(
                f"in {precision} its scores differ by {changed:.1e}, more than {most:g}"
            )
        require_faster(library, self._saved, self.batch[:_EXPORTED_WITH])
        return replace(entry, difference=changed), found

    def _load(self, entry: CompiledMember) -> LoadedMember:
        library = load_library(entry, self.work, self.batch.device)
        return LoadedMember(self.member.name, library, None)

    def _compile(self, module: nn.Module, precision: Precision) -> str:
        """One library, for batches of 1 to ``runtime.micro_batch`` samples."""
        if precision is Precision.BFLOAT16:
            module = Autocast(module, self.batch.device.type)
        if precision is Precision.INT8:
            example, calibration = self.batch[:_EXPORTED_WITH], self.batch[self.trials :]
            with torchs_errors():
                module = quantized(module, _any_number(self._most), example, calibration)
        return compile_library(
            partial(_export, module, self.batch, self._most),
            self.work,
            f"{self.member.name}-{precision}",
            self.batch.device,
        )


def compile_stack(
    spec: EnsembleSpec,
    positions: tuple[int, ...],
    loaded: Sequence[LoadedMember],
    batch: Tensor,
    work: Path,
) -> tuple[CompiledStack, Tensor]:
    """Small members of one architecture as one.

    torch.vmap takes the number of samples for a constant, so each library has a fixed one.

    Args:
        spec: the ensemble.
        positions: of the members.
        loaded: all members of the ensemble.
        batch: the trial images and samples, float32 (N, channels, height, width).
        work: where the libraries go, below `FOLDER`.

    Returns:
        What is known of them, and the outputs for the batch (M members, N samples, outputs).

    Raises:
        NotCompiled: it cannot be done, changes answers, or gains nothing.
    """
    members = [spec.members[i] for i in positions]
    with torch.no_grad():
        stack = stack_of(positions, loaded)
        if stack is None:
            raise NotCompiled("their weights cannot be stacked")

        def exported(samples: int) -> torch.export.ExportedProgram:
            example = batch.new_zeros((samples, *batch.shape[1:]))
            # torch.vmap becomes plain operators, which torch.export takes.
            graph = make_fx(lambda x: stack.forward(x).contiguous(), _allow_non_fake_inputs=True)(
                example
            )
            return torch.export.export(graph, (example,))

        entry = CompiledStack(
            members=tuple(member.name for member in members),
            files=tuple(
                compile_library(
                    partial(exported, n), work, f"stack-of-{members[0].name}-{n}", batch.device
                )
                for n in _STACKED_SAMPLES
            ),
            samples=_STACKED_SAMPLES,
            shape=tuple(batch.shape[1:]),
            difference=0.0,
        )
        library = StackLibrary(entry, work)
        found = library(batch)
        changed = _joint_difference(spec, positions, loaded, batch, found)
        most = max(_STACKED_SAMPLES)
        crowd = batch.repeat((-(-most // len(batch)), 1, 1, 1))[:most]
        require_faster(library, stack.forward, crowd)
        return replace(entry, difference=changed), found


def compile_trunk(
    spec: EnsembleSpec,
    positions: tuple[int, ...],
    loaded: Sequence[LoadedMember],
    made: Mapping[str, CompiledMember],
    batch: Tensor,
    work: Path,
) -> tuple[CompiledTrunk, Tensor]:
    """Members that share a backbone as one.

    Args:
        spec: the ensemble.
        positions: of the members.
        loaded: all members of the ensemble.
        made: those that were compiled alone.
        batch: the trial images and samples, float32 (N, channels, height, width).
        work: where the library goes, below `FOLDER`.

    Returns:
        What is known of it, and the outputs for the batch (M members, N samples, outputs).

    Raises:
        NotCompiled: it cannot be done, changes answers, or gains nothing.
    """
    members = [spec.members[i] for i in positions]
    alone = [
        load_library(made[member.name], work, batch.device)
        if member.name in made
        else accelerate(loaded[i], spec, member, batch)
        for i, member in zip(positions, members, strict=True)
    ]
    precisions = {made[member.name].precision for member in members if member.name in made}
    # Not in int8, in which a member is calibrated alone.
    reduced = precisions == {Precision.BFLOAT16}
    precision = Precision.BFLOAT16 if reduced else Precision.FLOAT32
    most = _most(spec)
    joint: nn.Module = Joint([module for i in positions if (module := loaded[i].module)])
    if reduced:
        joint = Autocast(joint, batch.device.type)
    with torch.no_grad():
        file = compile_library(
            partial(_export, joint, batch, most),
            work,
            f"trunk-of-{members[0].name}-{precision}",
            batch.device,
        )
        entry = CompiledTrunk(
            members=tuple(member.name for member in members),
            file=file,
            precision=str(precision),
            shape=tuple(batch.shape[1:]),
            most=most,
            difference=0.0,
        )
        library = load_library(entry, work, batch.device)
        found = torch.cat([library(part) for part in torch.split(batch, most)], dim=1)
        changed = _joint_difference(spec, positions, loaded, batch, found)

        def one_by_one(batch: Tensor) -> Tensor:
            return torch.stack([member(batch) for member in alone])

        require_faster(library, one_by_one, batch[:_EXPORTED_WITH])
        return replace(entry, difference=changed), found


def _export(module: nn.Module, batch: Tensor, most: int) -> torch.export.ExportedProgram:
    """A program for 1 to `most` samples."""
    return torch.export.export(
        module,
        (batch[:_EXPORTED_WITH],),
        dynamic_shapes=_any_number(most),
    )


def _any_number(most: int) -> tuple[dict[int, Any], ...]:
    """Of samples, as torch.export is told."""
    return ({0: torch.export.Dim("batch", min=1, max=most)},)


def _joint_difference(
    spec: EnsembleSpec,
    positions: Sequence[int],
    loaded: Sequence[LoadedMember],
    batch: Tensor,
    found: Tensor,
) -> float:
    """Of the scores of members that were compiled as one from those that each gives alone.

    Raises:
        NotCompiled: it is too large.
    """
    changed = max(
        difference(loaded[i](batch), raw, spec, spec.members[i])
        for i, raw in zip(positions, found, strict=True)
    )
    if not changed <= spec.runtime.tolerance:
        raise NotCompiled(
            f"their scores differ by {changed:.1e}, more than {spec.runtime.tolerance:g}"
        )
    return changed


def _most(spec: EnsembleSpec) -> int:
    """Samples that a library takes at once."""
    return max(spec.runtime.micro_batch, _EXPORTED_WITH)
