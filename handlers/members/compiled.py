"""Loads those executables of the build that run on this machine.

On a CPU they are models of OpenVINO, on a GPU libraries that AOTInductor compiled. If the scores of
an executable here are those of the saved members at build, the worker runs it instead of these.
Otherwise the worker logs the reason and runs the members as they were saved. The archive's
self-test, with the same tolerance, then shows that the members which were chosen answer rightly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..archive.self_test import tolerance_of
from ..spec import Engine, EnsembleSpec
from .compiled_record import OUTPUTS, RECORD, CompiledExecutable, CompiledRecord
from .executable import UNLIMITED
from .loading import as_outputs, difference
from .openvino_model import OpenVinoModel, import_openvino
from .postprocessing import Postprocess, load_postprocess
from .target import Target
from .timing import fastest_seconds_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CompiledMembers:
    """Runs one member, or several at once, from files that the build made.

    Attributes:
        members: positions of the members in the ensemble.
        run: float32 (N, channels, height, width) -> raw outputs, (M members, N, outputs); those of
            a single member may lack the first dimension.
        concurrent: whether several threads may call it at the same time.
        uses_all_threads: whether a call computes on all threads of the worker by itself.
        max_batch_size: the largest number of samples that one call takes.
        postprocess: converts what a single member's network returns to outputs.
    """

    members: tuple[int, ...]
    run: Callable[[Tensor], Tensor]
    concurrent: bool = False
    uses_all_threads: bool = False
    max_batch_size: int = UNLIMITED
    postprocess: Postprocess | None = None

    def pays_for(self, num_samples: int) -> bool:
        """Return True: the build found it faster than the saved members, or the spec demands it."""
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
    side_by_side: Callable[[Sequence[float]], bool],
) -> list[CompiledMembers]:
    """Load the executables beside a spec that give the scores of the saved members.

    OpenVINO's threads are arranged in one of two ways: each member computes on one thread, and
    several members run side by side; or each uses all threads, and they run one after another.
    `side_by_side` chooses, from the time that each executable takes for one sample on one thread.

    Args:
        spec: the ensemble.
        folder: where the spec lies.
        inputs_of_member: for each member the example inputs, float32 (N, channels, height, width).
        device: where the members run.
        threads: number of threads that the worker has.
        side_by_side: function from the seconds that each executable takes for one sample to whether
            running them side by side is faster.

    Raises:
        ArchiveError: the record of compiled executables is damaged.
        MemberError: the archive needs OpenVINO, which is not installed.
    """
    path = folder / RECORD
    if not path.is_file():
        return []
    record = CompiledRecord.from_json(path.read_text(encoding="utf-8"))
    # A process that runs some of the archive's members (`rollout`) needs the executables of these.
    names = {member.name for member in spec.members}
    entries = [
        each
        for each in record.executables
        if names.issuperset(each.members) and _runs_here(each, record.target, device)
    ]
    if not entries:
        return []
    outputs = load_file(folder / OUTPUTS)

    def load(streams: int) -> list[CompiledMembers]:
        loaded = [
            _load_checked(each, spec, folder, inputs_of_member, outputs, device, threads, streams)
            for each in entries
        ]
        return [each for each in loaded if each is not None]

    if threads == 1 or len(entries) == 1:
        # A single executable has nothing beside which it could run.
        return load(1)
    executables = load(threads)
    if not any(each.concurrent for each in executables):
        return executables
    # Executables of several members come first. A member that one of them computes is not timed
    # alone, because it does not run alone.
    computed: set[int] = set()
    seconds = []
    for each in executables:
        if not computed & set(each.members):
            one_sample = inputs_of_member[each.members[0]][:1]
            seconds.append(fastest_seconds_of(partial(each, one_sample), device))
            computed |= set(each.members)
    return executables if side_by_side(seconds) else load(1)


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
    *,
    threads: int = 1,
    streams: int = 1,
) -> CompiledMembers:
    """Load one executable without its postprocess, and without comparing its outputs.

    Args:
        entry: the executable's part of the record.
        spec: the ensemble.
        folder: the folder that the names of its files start from.
        device: the device that it was made for.
        threads: number of threads that it may compute on; for the CPU alone.
        streams: number of calls that share these threads and compute side by side; for the CPU
            alone.

    Raises:
        OSError: a file cannot be loaded.
        MemberError: a file is damaged, or OpenVINO is not installed.
        ValueError: the spec has no such member.
    """
    names = [member.name for member in spec.members]
    members = tuple(names.index(name) for name in entry.members)
    path = folder / entry.files[0]
    max_batch_size = UNLIMITED if entry.max_batch_size is None else entry.max_batch_size
    # A further engine is added here, as a function that makes `run` from an entry's files.
    if entry.engine == Engine.AOT_INDUCTOR:
        return CompiledMembers(members, _library(path, device), max_batch_size=max_batch_size)
    return CompiledMembers(
        members,
        OpenVinoModel(path, entry.precision, streams=streams, threads=threads),
        concurrent=streams > 1,
        uses_all_threads=streams == 1 and threads > 1,
        max_batch_size=max_batch_size,
    )


def _runs_here(entry: CompiledExecutable, target: Target, device: torch.device) -> bool:
    """Return whether an executable was made for this device and machine; log the reason if not."""
    names = ", ".join(entry.members)
    if entry.engine == Engine.OPENVINO:
        if device.type != "cpu":
            logger.info("%s: OpenVINO is for the CPU; the saved members run on %s", names, device)
        return device.type == "cpu"
    misfit = target.misfit(Target.here(device))
    if misfit is not None:
        logger.warning(
            "%s: the compiled executable is not used, the saved members run instead: it was %s; "
            "build the archive on a machine like this one",
            names,
            misfit,
        )
    return misfit is None


def _load_checked(
    entry: CompiledExecutable,
    spec: EnsembleSpec,
    folder: Path,
    inputs_of_member: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    device: torch.device,
    threads: int,
    streams: int,
) -> CompiledMembers | None:
    """Load an executable; log a warning and return None if its scores are not the saved ones."""
    names = ", ".join(entry.members)
    if entry.engine == Engine.OPENVINO:
        # A missing OpenVINO ends the load; a file that OpenVINO cannot load is only logged.
        import_openvino()
    started = time.perf_counter()
    try:
        executable = replace(
            load_executable(entry, spec, folder, device, threads=threads, streams=streams),
            postprocess=_postprocess_of(entry, spec, folder),
        )
        changed = _difference_from_saved(executable, spec, inputs_of_member, outputs)
        problem = f"its answers differ by {changed:.1e} from those of the saved members at build"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        changed, problem = float("nan"), str(error)
    if changed <= entry.tolerance(tolerance_of(spec)):
        logger.info(
            "%s: runs with %s in %s, loaded in %.0f ms",
            names,
            entry.engine,
            entry.precision,
            1000 * (time.perf_counter() - started),
        )
        return executable
    logger.warning(
        "%s: the executable for %s cannot be used (%s); the saved members run instead",
        names,
        entry.engine,
        problem,
    )
    return None


def _difference_from_saved(
    executable: CompiledMembers,
    spec: EnsembleSpec,
    inputs_of_member: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
) -> float:
    """Compute the largest difference of an executable's scores from the saved members' at build.

    Args:
        executable: the executable that was loaded here.
        spec: the ensemble.
        inputs_of_member: for each member the example inputs.
        outputs: the saved members' raw outputs at build, by member name.
    """
    batch = inputs_of_member[executable.members[0]]
    differences = []
    for position, raw in zip(executable.members, executable(batch), strict=True):
        member = spec.members[position]
        saved = outputs[member.name].to(batch.device)
        differences.append(difference(saved, raw, spec, member))
    return max(differences)


def _library(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Make a function that runs a library which AOTInductor compiled.

    The build makes libraries for GPUs alone. One for the CPU lets the same code be tried without.

    ``torch._inductor.aoti_load_package`` would unpack a package anew for each worker, and import
    torch's compiler: two seconds and 170 MB for nothing that running needs.
    """
    libraries = torch._C._aoti
    runner = (
        libraries.AOTIModelContainerRunnerCpu(str(path), 1)
        if device.type == "cpu"
        else libraries.AOTIModelContainerRunnerCuda(str(path), 1, str(device))
    )

    def run(batch: Tensor) -> Tensor:
        (result,) = runner.run([batch.contiguous()])
        assert isinstance(result, Tensor)
        return result

    return run
