"""Loads the compiled executables of an archive, those that run on this machine.

The worker runs a compiled executable instead of the saved members where torch and the processor
are those that it was made for, and where it gives the outputs that it gave at build. Elsewhere the
worker logs the reason and runs the members as they were saved.

A library is mapped from the folder into which TorchServe extracted the archive. The workers of a
host therefore share its pages, and with them the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..spec import EnsembleSpec
from .aot_library import AotLibrary
from .compiled_record import OUTPUTS, RECORD, CompiledExecutable, CompiledRecord, Engine
from .executable import UNLIMITED
from .loading import as_outputs, difference
from .postprocessing import Postprocess, load_postprocess
from .target import Target

logger = logging.getLogger(__name__)

MAX_DIFFERENCE_FROM_BUILD = 1e-2
"""Largest difference of a probability between build and worker that counts as the same answer."""

_MIN_FILLED_SHARE = 0.75
"""A fixed batch size is used when the remaining samples fill at least this share of it."""


@dataclass(frozen=True, eq=False)
class CompiledMembers:
    """Runs one member, or several at once, from compiled files.

    Attributes:
        members: positions of the members in the ensemble.
        run: float32 (N, channels, height, width) -> raw outputs, (M members, N, outputs); those of
            a single member may lack the first dimension.
        concurrent: whether several threads may call it at the same time.
        max_batch_size: the largest number of samples that one call takes.
        postprocess: converts what a single member's network returns to outputs.
    """

    members: tuple[int, ...]
    run: Callable[[Tensor], Tensor]
    concurrent: bool
    max_batch_size: int
    postprocess: Postprocess | None = None

    def pays_for(self, num_samples: int) -> bool:
        """Always: the build kept it because it is faster than the saved members."""
        return True

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute raw outputs, float32 (M members, N samples, outputs)."""
        raw = self.run(batch)
        if self.postprocess is not None:
            return self.postprocess(raw, len(batch), batch.device).unsqueeze(0)
        return raw.float() if len(self.members) > 1 else as_outputs(raw).unsqueeze(0)


@torch.inference_mode()
def load_compiled(
    spec: EnsembleSpec,
    folder: Path,
    inputs_of_member: Sequence[Tensor],
    device: torch.device,
    threads: int,
) -> list[CompiledMembers]:
    """Load the compiled executables beside a spec that give the outputs that they gave at build.

    Args:
        spec: the ensemble.
        folder: where the spec lies.
        inputs_of_member: for each member the example inputs, float32 (N, channels, height, width).
        device: where the members run.
        threads: how many threads may call an executable at the same time.

    Raises:
        ArchiveError: the record of compiled executables is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return []
    record = CompiledRecord.from_json(path.read_text(encoding="utf-8"))
    misfit = record.target.misfit(Target.here(device))
    if misfit is not None:
        logger.warning(
            "the compiled members are not used, the members run as they were saved: they were "
            "%s; build the archive on a machine like this one",
            misfit,
        )
        return []
    outputs = load_file(folder / OUTPUTS)
    executables = []
    for entry in record.executables:
        names = ", ".join(entry.members)
        try:
            executable = replace(
                load_executable(entry, spec, folder, device, threads),
                postprocess=_postprocess_of(entry, spec, folder),
            )
            changed = _difference_from_build(executable, spec, inputs_of_member, outputs)
            problem = f"its answers differ by {changed:.1e} from those at build"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            changed, problem = float("nan"), str(error)
        if changed <= MAX_DIFFERENCE_FROM_BUILD:
            logger.info("%s: the compiled executable runs, in %s", names, entry.precision)
            executables.append(executable)
        else:
            logger.warning(
                "%s: the compiled executable cannot be used (%s); the saved members run instead",
                names,
                problem,
            )
    return executables


def _postprocess_of(
    entry: CompiledExecutable, spec: EnsembleSpec, folder: Path
) -> Postprocess | None:
    """Load the postprocess of an executable's member; executables of several members have none."""
    if len(entry.members) > 1:
        return None
    (member,) = (member for member in spec.members if member.name == entry.members[0])
    return load_postprocess(spec, member, folder)


def load_executable(
    entry: CompiledExecutable,
    spec: EnsembleSpec,
    folder: Path,
    device: torch.device,
    threads: int = 1,
) -> CompiledMembers:
    """Load one compiled executable without its postprocess, and without comparing its outputs.

    Args:
        entry: the executable's part of the record.
        spec: the ensemble.
        folder: the folder that the names of its files start from.
        device: the device that it was made for.
        threads: how many threads may call it at the same time, on the CPU.

    Raises:
        OSError: a file cannot be loaded.
        MemberError: a file is damaged.
        ValueError: the spec has no such member.
    """
    names = [member.name for member in spec.members]
    members = tuple(names.index(name) for name in entry.members)
    # The place for a further engine: a function that makes `run` of an entry's files.
    match Engine(entry.engine):
        case Engine.AOT_INDUCTOR:
            run = _aot_inductor(entry, folder, device, threads)
    return CompiledMembers(
        members,
        run,
        concurrent=entry.dynamic and device.type == "cpu",
        max_batch_size=max(entry.batch_sizes) if entry.dynamic else UNLIMITED,
    )


def _difference_from_build(
    executable: CompiledMembers,
    spec: EnsembleSpec,
    inputs_of_member: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
) -> float:
    """Largest difference of an executable's scores from those of its members at build.

    Args:
        executable: what was loaded.
        spec: the ensemble.
        inputs_of_member: for each member the example inputs.
        outputs: raw outputs at build, by member name.
    """
    batch = inputs_of_member[executable.members[0]]
    differences = []
    for position, raw in zip(executable.members, executable(batch), strict=True):
        member = spec.members[position]
        at_build = outputs[member.name].to(batch.device)
        differences.append(difference(at_build, raw, spec, member))
    return max(differences)


def _aot_inductor(
    entry: CompiledExecutable, folder: Path, device: torch.device, threads: int
) -> Callable[[Tensor], Tensor]:
    """Make a function of libraries that AOTInductor compiled.

    ``torch._inductor.aoti_load_package`` would unpack a package anew for each worker, and import
    torch's compiler: two seconds and 170 MB for nothing that running needs.
    """
    if entry.dynamic:
        (file,), (max_batch_size,) = entry.files, entry.batch_sizes
        if device.type == "cpu":
            return AotLibrary(folder / file, entry.shape, max_batch_size, copies=threads)
        return _cuda_library(folder / file, device)
    return FixedBatchSizes(
        {
            batch_size: AotLibrary(folder / file, entry.shape, batch_size)
            for batch_size, file in zip(entry.batch_sizes, entry.files, strict=True)
        }
    )


def _cuda_library(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Make a function of a library that AOTInductor compiled for a GPU."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCuda(str(path), 1, str(device))

    def run(batch: Tensor) -> Tensor:
        (result,) = runner.run([batch.contiguous()])
        assert isinstance(result, Tensor)
        return result

    return run


@dataclass(frozen=True)
class FixedBatchSizes:
    """Runs any number of samples on functions that each take a fixed number of samples.

    Attributes:
        by_batch_size: batch size -> function from (batch size, channels, height, width) to raw
            outputs, (M members, batch size, outputs).
    """

    by_batch_size: Mapping[int, Callable[[Tensor], Tensor]]

    def __call__(self, batch: Tensor) -> Tensor:
        """Split the batch into calls, pad those that it does not fill, and join the outputs."""
        outputs: list[Tensor] = []
        rest = batch
        while len(rest) or not outputs:
            size = self._size_for(len(rest))
            samples, rest = rest[:size], rest[size:]
            padding = samples.new_zeros((size - len(samples), *samples.shape[1:]))
            padded = torch.cat([samples, padding]) if len(padding) else samples
            outputs.append(self.by_batch_size[size](padded)[:, : len(samples)])
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]

    def _size_for(self, num_samples: int) -> int:
        """The largest batch size that the samples nearly fill; the smallest if they fill none."""
        filled = [size for size in self.by_batch_size if num_samples >= _MIN_FILLED_SHARE * size]
        return max(filled, default=min(self.by_batch_size))
