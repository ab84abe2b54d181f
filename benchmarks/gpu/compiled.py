"""Steps: members that AOTInductor compiled answer as the saved ones, alone and joined."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.archiver.candidates import CandidateFactory
from torchserve_ensemble.archiver.libraries import require_compiler
from torchserve_ensemble.archiver.shared_backbone import groups_with_shared_backbone
from torchserve_ensemble.archiver.trial import Trial, VerifiedCandidate
from torchserve_ensemble.handlers.base.errors import ArchiveError
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.preprocessing import preprocessors_of
from torchserve_ensemble.handlers.members.compiled import CompiledMembers
from torchserve_ensemble.handlers.members.compiled_record import (
    FOLDER,
    OUTPUTS,
    RECORD,
    CompiledRecord,
)
from torchserve_ensemble.handlers.members.loading import load_member
from torchserve_ensemble.handlers.members.target import Target
from torchserve_ensemble.handlers.spec import Engine, EnsembleSpec, Precision

from .ensembles import (
    TOLERANCE,
    WIDTH_OF_LARGE,
    inputs,
    network_of,
    require_right,
    right_scores,
    save_member,
    write_spec,
)
from .network import Network
from .rows import Skipped, Step

_NUM_EXAMPLES = 3
"""Samples whose outputs at build the record holds, as a build writes it."""


class _AotInductor(CandidateFactory):
    """Candidates of AOTInductor on every device; a build makes them for GPUs alone."""

    @property
    def engine(self) -> Engine:
        """AOTInductor."""
        return Engine.AOT_INDUCTOR


def check(step: Step) -> None:
    """Compile members as the build does, write its record, and load them as a worker does."""
    with step.row("shared backbone, compiled by AOTInductor, float32") as row:
        row.detail = _check_compiled(step, _two_heads(), Precision.FLOAT32)
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        with step.row(f"one member, compiled by AOTInductor, {precision}") as row:
            if not step.on_gpu:
                raise Skipped("the row above compiles for the CPU too, and that takes long")
            row.detail = _check_compiled(step, [network_of(0, WIDTH_OF_LARGE)], precision)


def build(step: Step) -> None:
    """Let the build itself choose, with ``runtime.engine: aot_inductor``."""
    with step.row("build with runtime.engine: aot_inductor") as row:
        if not step.on_gpu:
            raise Skipped("aot_inductor is for a GPU")
        if importlib.util.find_spec("rich") is None:
            raise Skipped("rich, which prints the build's table, is not installed")
        _require_compiler()
        row.detail = _check_build(step)


def _require_compiler() -> None:
    try:
        require_compiler()
    except ArchiveError:
        raise Skipped("there is no C++ compiler: install g++ or set CXX") from None


def _two_heads() -> list[Network]:
    """Two members with one backbone."""
    first, second = network_of(0, WIDTH_OF_LARGE), network_of(0, WIDTH_OF_LARGE)
    with torch.no_grad():
        second.head.weight.neg_()
        second.head.bias.neg_()
    return [first, second]


def _write(step: Step, modules: Sequence[Network], **runtime: object) -> EnsembleSpec:
    members = [save_member(step.folder, f"m{i}", each) for i, each in enumerate(modules)]
    return write_spec(step.folder, members, runtime=runtime)


@torch.no_grad()
def _check_compiled(step: Step, modules: Sequence[Network], precision: Precision) -> str:
    _require_compiler()
    spec = _write(step, modules, engine="aot_inductor", precision=str(precision))
    # The example inputs of a worker, for which it compares its outputs with those at build.
    (preprocessor,), _ = preprocessors_of(spec, step.folder, step.device)
    examples = preprocessor(preprocessor.examples(_NUM_EXAMPLES))
    loaded = [load_member(spec, member, step.folder, step.device) for member in spec.members]
    positions = tuple(range(len(modules)))
    if len(modules) > 1:
        groups = groups_with_shared_backbone(spec, loaded, [0] * len(modules))
        assert groups == [positions], f"members that share a backbone: {groups}"
    (step.folder / FOLDER).mkdir(exist_ok=True)
    candidates = _AotInductor(spec, step.folder, loaded, step.folder, step.device)
    candidate = candidates.candidate(positions, precision, examples, examples)
    tried = Trial(spec, loaded, step.folder).verify(candidate, examples)
    _write_record(step.folder, tried, examples.device)
    runtime = Runtime.load(spec, step.folder, step.device, compiled=True)
    runs = runtime.executables.joint if len(modules) > 1 else runtime.executables.single
    assert [type(each) for each in runs] == [CompiledMembers], "the worker runs the saved members"
    batch = inputs(6)
    changed = require_right(
        runtime.run(list(batch)), right_scores(modules, batch), TOLERANCE[str(precision)]
    )
    return f"largest difference {changed:.1e}"


def _write_record(folder: Path, tried: VerifiedCandidate, device: torch.device) -> None:
    """Write what a worker reads of the build's executables."""
    record = CompiledRecord(Target.here(device), (tried.entry,))
    (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    outputs: dict[str, Tensor] = {
        name: raw.cpu().contiguous()
        for name, raw in zip(tried.entry.members, tried.saved_outputs, strict=True)
    }
    save_file(outputs, folder / OUTPUTS)


def _check_build(step: Step) -> str:
    # Imported here: it needs rich.
    from torchserve_ensemble.archiver.compilation import compiled_members

    modules = _two_heads()
    spec = _write(step, modules, engine="aot_inductor", precision="auto")
    reports: list[str] = []
    with compiled_members(spec, step.folder, report=reports.append) as files:
        (step.folder / FOLDER).mkdir(exist_ok=True)
        for name, path in files.items():
            (step.folder / name).write_bytes(path.read_bytes())
    runtime = Runtime.load(spec, step.folder, step.device, compiled=True)
    batch = inputs(6)
    changed = require_right(
        runtime.run(list(batch)), right_scores(modules, batch), TOLERANCE["auto"]
    )
    return f"largest difference {changed:.1e}\n{reports[-1]}"
