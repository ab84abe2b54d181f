"""Compile members ahead of time (torch.export and AOTInductor), for machines like this one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..handlers.aot_library import constants_path
from ..handlers.compiled import (
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
from ..handlers.errors import MemberError
from ..handlers.execution import accelerate, is_large, wants_bfloat16
from ..handlers.members import LoadedMember, difference, load_member
from ..handlers.preprocess import preprocessors_of
from ..handlers.service import choose_device
from ..handlers.spec import EnsembleSpec, Member, Precision
from ..handlers.stacking import alike, stack_of
from ..handlers.trial import trial_images
from .libraries import (
    Autocast,
    NotCompiled,
    compile_library,
    require_compiler,
    require_faster,
    torchs_errors,
)
from .quantization import quantized, require_quantization
from .trunks import Joint, sharing

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
        ArchiveError: this machine has no C++ compiler.
    """
    require_compiler()
    if spec.runtime.precision is Precision.INT8:
        require_quantization(len(samples))
    device = choose_device(spec, gpu=None)
    preprocessors, positions = preprocessors_of(spec, device)
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


class _Compilation:
    """What became of the members so far."""

    def __init__(
        self,
        spec: EnsembleSpec,
        loaded: Sequence[LoadedMember],
        group_of_member: Sequence[int],
        batches: Sequence[Tensor],
        trials: int,
        work: Path,
        say: Callable[[str], None],
    ) -> None:
        """Begin.

        Args:
            spec: the ensemble.
            loaded: its members.
            group_of_member: for each the position of its preprocessing.
            batches: for each preprocessing the trial images and after them the samples.
            trials: how many trial images there are.
            work: where the libraries go, below `FOLDER`.
            say: told what became of each member.
        """
        self._spec = spec
        self._loaded = loaded
        self._group_of_member = group_of_member
        self._batches = batches
        self._trials = trials
        self._work = work
        self._say = say
        self._members: dict[str, CompiledMember] = {}
        self._stacks: list[CompiledStack] = []
        self._trunks: list[CompiledTrunk] = []
        self._outputs: dict[str, Tensor] = {}

    def compile_stacks(self) -> None:
        """Small members of one architecture."""
        for together in _alike(self._spec, self._loaded, self._group_of_member, self._batches):
            started = time.perf_counter()
            names = self._names(together)
            known_as = f"{names[0]} to {names[-1]} ({len(names)} of one architecture)"
            try:
                stack, found = compile_stack(
                    self._spec, together, self._loaded, self._batch(together[0]), self._work
                )
            except NotCompiled as reason:
                self._say(f"members {known_as} are not compiled as one: {reason}")
                continue
            self._stacks.append(stack)
            self._keep(names, found)
            self._say(
                f"members {known_as} compiled as one: their {_told(stack.difference, started)}"
            )

    def compile_members(self) -> None:
        """Those that are in no stack."""
        for index, member in enumerate(self._spec.members):
            if member.name in self._outputs:
                continue
            started = time.perf_counter()
            batch = self._batch(index)
            compiler = _Compiler(
                self._spec,
                member,
                self._loaded[index],
                batch,
                self._work,
                batch[self._trials :],
                self._say,
            )
            try:
                entry, found = compiler.best()
            except NotCompiled as reason:
                self._say(f"member '{member.name}' is not compiled: {reason}")
                continue
            self._members[member.name] = entry
            self._keep([member.name], found.unsqueeze(0))
            self._say(
                f"member '{member.name}' compiled in {entry.precision}: "
                f"its {_told(entry.difference, started)}"
            )

    def compile_trunks(self) -> None:
        """Those that share a backbone, once more as one."""
        stacked = {name for stack in self._stacks for name in stack.members}
        for together in sharing(self._spec, self._loaded, self._group_of_member):
            names = self._names(together)
            if stacked & set(names):
                continue
            started = time.perf_counter()
            batch = self._batch(together[0])
            known_as = f"members {' and '.join(names)} share a backbone"
            try:
                trunk, found = compile_trunk(
                    self._spec, together, self._loaded, self._members, batch, self._work
                )
            except NotCompiled as reason:
                self._say(f"{known_as}, and run alone: {reason}")
                continue
            self._trunks.append(trunk)
            for name, raw in zip(names, found, strict=True):
                if name not in self._outputs:
                    self._keep([name], raw.unsqueeze(0))
            self._say(
                f"{known_as}, compiled as one in {trunk.precision}: "
                f"their {_told(trunk.difference, started)}"
            )

    def files(self, target: Target) -> dict[str, Path]:
        """Path beside the spec -> the file; none where nothing was compiled."""
        libraries = [entry.file for entry in self._members.values()]
        libraries += [file for stack in self._stacks for file in stack.files]
        libraries += [trunk.file for trunk in self._trunks]
        if not libraries:
            return {}
        record = CompiledRecord(target, self._members, tuple(self._stacks), tuple(self._trunks))
        (self._work / RECORD).write_text(record.to_json())
        save_file(self._outputs, self._work / OUTPUTS)
        lists = [str(constants_path(Path(library))) for library in libraries]
        names = [*libraries, *lists, RECORD, OUTPUTS]
        return {name: path for name in names if (path := self._work / name).exists()}

    def _names(self, positions: Sequence[int]) -> list[str]:
        return [self._spec.members[i].name for i in positions]

    def _batch(self, member: int) -> Tensor:
        return self._batches[self._group_of_member[member]]

    def _keep(self, names: Sequence[str], found: Tensor) -> None:
        """The members' outputs for the trial images, which a worker compares its own with."""
        for name, raw in zip(names, found, strict=True):
            self._outputs[name] = raw[: self._trials].cpu().contiguous()


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


class _Compiler:
    """Finds the fastest form of one member that answers as the member does."""

    def __init__(
        self,
        spec: EnsembleSpec,
        member: Member,
        loaded: LoadedMember,
        batch: Tensor,
        work: Path,
        calibration: Tensor,
        say: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._member = member
        self._loaded = loaded
        self._batch = batch
        self._work = work
        self._calibration = calibration
        self._say = say
        self._most = max(spec.runtime.micro_batch, _EXPORTED_WITH)

    @torch.no_grad()
    def best(self) -> tuple[CompiledMember, Tensor]:
        """What is known of the library, and its outputs for the batch.

        Raises:
            NotCompiled: there is none.
            MemberError: ``precision: bfloat16`` is demanded and changes its answers.
        """
        module = self._loaded.module
        if module is None or isinstance(module, torch.jit.ScriptModule):
            saved = str(self._member.weights_format)
            raise NotCompiled(f"it is saved as {saved}, and runs as that")
        wanted = self._spec.runtime.precision
        if wanted is Precision.INT8 and self._batch.device.type == "cpu" and is_large(module):
            return self._with_int8(module)
        return self._with_floats(module)

    def _with_int8(self, module: nn.Module) -> tuple[CompiledMember, Tensor]:
        """In int8 if that is right and faster than in floating point."""
        known_as = f"member '{self._member.name}'"
        try:
            entry, found = self._form(module, Precision.INT8)
        except NotCompiled as reason:
            self._say(f"{known_as} does not run in int8: {reason}")
            return self._with_floats(module)
        try:
            other, others = self._with_floats(module)
        except NotCompiled:
            return entry, found
        try:
            require_faster(self._load(entry), self._load(other), self._batch[:_EXPORTED_WITH])
        except NotCompiled as reason:
            self._say(f"{known_as} does not run in int8, {other.precision} is as fast: {reason}")
            return other, others
        return entry, found

    def _with_floats(self, module: nn.Module) -> tuple[CompiledMember, Tensor]:
        """In bfloat16 where that is wanted and right, else in float32."""
        if wants_bfloat16(self._spec, module, self._batch.device):
            try:
                return self._form(module, Precision.BFLOAT16)
            except _OtherAnswers as reason:
                if self._spec.runtime.precision is Precision.BFLOAT16:
                    raise MemberError(
                        f"member '{self._member.name}': {reason}; set runtime.precision to "
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
            shape=tuple(self._batch.shape[1:]),
            most=self._most,
            difference=0.0,
        )
        library = self._load(entry)
        # There may be more samples than fit at once.
        found = torch.cat([library(part) for part in torch.split(self._batch, self._most)])
        changed = difference(self._loaded(self._batch), found, self._spec, self._member)
        most = self._spec.runtime.tolerance
        if not changed <= most:
            raise _OtherAnswers(
                f"in {precision} its scores differ by {changed:.1e}, more than {most:g}"
            )
        saved = accelerate(self._loaded, self._spec, self._member, self._batch)
        require_faster(library, saved, self._batch[:_EXPORTED_WITH])
        return replace(entry, difference=changed), found

    def _load(self, entry: CompiledMember) -> LoadedMember:
        library = load_library(entry, self._work, self._batch.device)
        return LoadedMember(self._member.name, library, None)

    def _compile(self, module: nn.Module, precision: Precision) -> str:
        """One library, for batches of 1 to ``runtime.micro_batch`` samples."""
        if precision is Precision.BFLOAT16:
            module = Autocast(module, self._batch.device.type)
        if precision is Precision.INT8:
            with torchs_errors():
                example = self._batch[:_EXPORTED_WITH]
                module = quantized(module, _any_number(self._most), example, self._calibration)
        return compile_library(
            partial(_export, module, self._batch, self._most),
            self._work,
            f"{self._member.name}-{precision}",
            self._batch.device,
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
        changed = max(
            difference(loaded[i](batch), raw, spec, member)
            for i, raw, member in zip(positions, found, members, strict=True)
        )
        if not changed <= spec.runtime.tolerance:
            raise NotCompiled(
                f"their scores differ by {changed:.1e}, more than {spec.runtime.tolerance:g}"
            )
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
    most = max(spec.runtime.micro_batch, _EXPORTED_WITH)
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
        changed = max(
            difference(loaded[i](batch), raw, spec, member)
            for i, raw, member in zip(positions, found, members, strict=True)
        )
        if not changed <= spec.runtime.tolerance:
            raise NotCompiled(
                f"their scores differ by {changed:.1e}, more than {spec.runtime.tolerance:g}"
            )

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
