"""Members compiled ahead of time: machine code with the weights in it.

``ts-ensemble build`` makes one library for each member (``runtime.compile`` in the spec;
`archiver.compilation`). The worker runs it instead of the member where torch and the processor are
those that it was made for and where it answers as it did at build. Elsewhere it says why not, and
loads the member as it was saved.

The library is mapped from where TorchServe extracted it: the workers of a host share its pages,
and with them the weights.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..base.archive_layout import name_problem
from ..base.errors import ArchiveError
from ..spec import EnsembleSpec, Member
from .aot_library import AotLibrary
from .loading import LoadedMember, difference

logger = logging.getLogger(__name__)

Library = TypeVar("Library", bound=Callable[[Tensor], Tensor])

FOLDER = "compiled"
"""Beside the spec: the libraries, and what is known of them."""

RECORD = f"{FOLDER}/compiled.json"
OUTPUTS = f"{FOLDER}/outputs.safetensors"

PARITY = 1e-2
"""Largest difference of a probability that counts as the same answer."""

# What compilers make use of; the other flags tell of the system's mitigations and virtualisation.
_INSTRUCTION_SETS = (
    "abm", "adx", "aes", "amx", "asimd", "avx", "bf16", "bmi", "f16c", "fma", "fphp", "gfni",
    "i8mm", "lzcnt", "movbe", "pclmul", "popcnt", "sha", "sse", "ssse", "sve", "vaes", "vpclmul",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What a library was made for.

    Attributes:
        torch_version: exactly; the library calls torch's functions.
        device: ``cpu``, or the GPU's name and compute capability.
        machine: operating system and architecture.
        instructions: the processor's instruction sets.
    """

    torch_version: str
    device: str
    machine: str
    instructions: tuple[str, ...]

    @classmethod
    def here(cls, device: torch.device) -> Target:
        """This machine."""
        name = device.type
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return cls(
            torch_version=torch.__version__,
            device=name,
            machine=f"{platform.system()} {platform.machine()}",
            instructions=_instructions(),
        )

    def misfit(self, here: Target) -> str | None:
        """Why a library for this target does not run there; None if it does."""
        for name in ("torch_version", "device", "machine"):
            if (built := getattr(self, name)) != (found := getattr(here, name)):
                return f"made for {name.replace('_', ' ')} {built}, and this is {found}"
        missing = sorted(set(self.instructions) - set(here.instructions))
        if missing:
            return f"made for a processor with {', '.join(missing)}, which this one lacks"
        return None


@dataclass(frozen=True)
class CompiledMember:
    """One library.

    Attributes:
        file: beside the spec.
        precision: ``float32`` or ``bfloat16``.
        shape: of a sample.
        most: samples at once.
        difference: of its scores from those of the member as it was saved, measured at build.
    """

    file: str
    precision: str
    shape: tuple[int, ...]
    most: int
    difference: float


@dataclass(frozen=True)
class CompiledStack:
    """Libraries for small members of one architecture, each for another number of samples.

    Attributes:
        members: their names, in the spec's order.
        files: beside the spec.
        samples: that each takes at once, neither more nor fewer; increasing.
        shape: of a sample.
        difference: the largest of a member's scores from those that it gives alone.
    """

    members: tuple[str, ...]
    files: tuple[str, ...]
    samples: tuple[int, ...]
    shape: tuple[int, ...]
    difference: float


@dataclass(frozen=True)
class CompiledTrunk:
    """One library for members that share a backbone.

    Attributes:
        members: their names, in the spec's order.
        file: beside the spec.
        precision: ``float32`` or ``bfloat16``.
        shape: of a sample.
        most: samples at once.
        difference: the largest of a member's scores from those of the member as it was saved.
    """

    members: tuple[str, ...]
    file: str
    precision: str
    shape: tuple[int, ...]
    most: int
    difference: float


@dataclass(frozen=True)
class CompiledRecord:
    """Contents of `RECORD`: the target, and the members that were compiled, alone and as one."""

    target: Target
    members: Mapping[str, CompiledMember]
    stacks: tuple[CompiledStack, ...] = ()
    trunks: tuple[CompiledTrunk, ...] = ()

    def to_json(self) -> str:
        """As it stands in the archive."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CompiledRecord:
        """Read it.

        Raises:
            ArchiveError: it is no such record.
        """
        try:
            content: Any = json.loads(text)
            target = content["target"]
            record = cls(
                Target(**_with_tuples(target)),
                {
                    name: CompiledMember(**_with_tuples(member))
                    for name, member in content["members"].items()
                },
                tuple(CompiledStack(**_with_tuples(stack)) for stack in content["stacks"]),
                tuple(CompiledTrunk(**_with_tuples(trunk)) for trunk in content["trunks"]),
            )
            for file in record.files():
                if not file.startswith(f"{FOLDER}/") or name_problem(file) is not None:
                    raise ValueError(f"{file[:100]!r} does not lie in {FOLDER}/")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArchiveError(
                f"{RECORD} is damaged ({error!r}); build the archive again"
            ) from None
        return record

    def files(self) -> list[str]:
        """Every library's file, beside the spec."""
        return [
            *(member.file for member in self.members.values()),
            *(file for stack in self.stacks for file in stack.files),
            *(trunk.file for trunk in self.trunks),
        ]


class CompiledMembers:
    """The compiled members of an archive, as far as they run here."""

    def __init__(self, record: CompiledRecord, outputs: Mapping[str, Tensor], folder: Path) -> None:
        self._record = record
        self._outputs = outputs
        self._folder = folder

    @classmethod
    def find(cls, folder: Path, device: torch.device) -> CompiledMembers | None:
        """Those beside the spec; None where there are none, or none for this machine.

        Raises:
            ArchiveError: their record is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            return None
        record = CompiledRecord.from_json(path.read_text(encoding="utf-8"))
        misfit = record.target.misfit(Target.here(device))
        if misfit is not None:
            logger.warning(
                "the compiled members are not used, the members run as they were saved: they were "
                "%s; build the archive on a machine like this one",
                misfit,
            )
            return None
        return cls(record, load_file(folder / OUTPUTS), folder)

    @torch.inference_mode()
    def load(
        self, spec: EnsembleSpec, member: Member, batch: Tensor, threads: int = 1
    ) -> LoadedMember | None:
        """A member's library, if it answers as it did at build.

        Args:
            spec: the ensemble.
            member: one of its members.
            batch: the trial images, as at build: float32 (N, channels, height, width).
            threads: how many run it at once.

        Returns:
            None where there is no library of this member, or it is not to be used.
        """
        entry = self._record.members.get(member.name)
        if entry is None:
            return None
        try:
            library = load_library(entry, self._folder, batch.device, threads)
            concurrent = batch.device.type == "cpu"
            loaded = LoadedMember(member.name, library, None, concurrent)
            expected = self._outputs[member.name].to(batch.device)
            changed = difference(expected, loaded(batch), spec, member)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.warning(
                "member %s: its compiled form cannot be used (%s); it runs as it was saved",
                member.name,
                error,
            )
            return None
        if not changed <= PARITY:
            logger.warning(
                "member %s: its compiled form answers otherwise than at build (by %.1e); "
                "it runs as it was saved",
                member.name,
                changed,
            )
            return None
        logger.info("member %s runs compiled, in %s", member.name, entry.precision)
        return loaded

    @torch.inference_mode()
    def load_stack(
        self, spec: EnsembleSpec, members: Sequence[Member], batch: Tensor
    ) -> StackLibrary | None:
        """The library of members that run as one, if it answers as it did at build.

        Args:
            spec: the ensemble.
            members: those of the stack.
            batch: the trial images, as for `load`.
        """
        names = tuple(member.name for member in members)
        for entry in self._record.stacks:
            if entry.members == names:
                return self._joint(spec, members, batch, partial(StackLibrary, entry, self._folder))
        return None

    @torch.inference_mode()
    def load_trunks(
        self,
        spec: EnsembleSpec,
        group_of_member: Sequence[int],
        batches: Sequence[Tensor],
        threads: int = 1,
    ) -> list[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
        """The libraries of members that share a backbone, as far as they answer as at build.

        Args:
            spec: the ensemble.
            group_of_member: for each member the position of its preprocessing.
            batches: for each preprocessing the trial images, as for `load`.
            threads: how many run a library at once.

        Returns:
            For each its members' positions, and the function from (N, channels, height, width) to
            (M members, N samples, outputs).
        """
        found = []
        for entry in self._record.trunks:
            members = [member for member in spec.members if member.name in entry.members]
            positions = tuple(spec.members.index(member) for member in members)
            batch = batches[group_of_member[positions[0]]]
            library = self._joint(
                spec,
                members,
                batch,
                partial(load_library, entry, self._folder, batch.device, threads),
            )
            if library is not None:
                found.append((positions, library))
        return found

    def _joint(
        self,
        spec: EnsembleSpec,
        members: Sequence[Member],
        batch: Tensor,
        load: Callable[[], Library],
    ) -> Library | None:
        """The library of several members, if it answers as it did at build."""
        try:
            library = load()
            found = library(batch)
            changed = max(
                difference(self._outputs[member.name].to(batch.device), raw, spec, member)
                for member, raw in zip(members, found, strict=True)
            )
            if changed <= PARITY:
                logger.info("%d members run compiled, as one", len(members))
                return library
            problem = f"it answers otherwise than at build, by {changed:.1e}"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            problem = str(error)
        logger.warning(
            "members %s: their joint compiled form cannot be used (%s)",
            ", ".join(member.name for member in members),
            problem,
        )
        return None


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON made lists of."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


class StackLibrary:
    """A compiled stack as a function of any number of samples, on the CPU."""

    def __init__(self, entry: CompiledStack, folder: Path) -> None:
        """Load it.

        Args:
            entry: what is known of it.
            folder: that its files' names start from.
        """
        self._libraries = {
            samples: AotLibrary(folder / file, entry.shape, samples)
            for samples, file in zip(entry.samples, entry.files, strict=True)
        }

    def __call__(self, batch: Tensor) -> Tensor:
        """Raw outputs, float32 (M members, N samples, outputs) of (N, channels, height, width)."""
        found: list[Tensor] = []
        left = batch
        while len(left) or not found:
            size = self._size_for(len(left))
            part, left = left[:size], left[size:]
            padding = part.new_zeros((size - len(part), *part.shape[1:]))
            whole = torch.cat([part, padding]) if len(padding) else part
            found.append(self._libraries[size](whole)[:, : len(part)])
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]

    def _size_for(self, samples: int) -> int:
        """The largest that these samples fill, or nearly so; else the smallest."""
        fitting = [size for size in self._libraries if 4 * samples >= 3 * size]
        return max(fitting, default=min(self._libraries))


def load_library(
    entry: CompiledMember | CompiledTrunk, folder: Path, device: torch.device, threads: int = 1
) -> Callable[[Tensor], Tensor]:
    """A library of AOTInductor as a function of one tensor.

    ``torch._inductor.aoti_load_package`` would unpack a package anew for each worker, and import
    torch's compiler: two seconds and 170 MB for nothing that running needs.

    Args:
        entry: what is known of it.
        folder: that its file's name starts from.
        device: that it was made for.
        threads: how many may run it at once, on the CPU.
    """
    path = folder / entry.file
    if device.type == "cpu":
        return AotLibrary(path, entry.shape, entry.most, copies=threads)
    runner = torch._C._aoti.AOTIModelContainerRunnerCuda(str(path), 1, str(device))

    def forward(batch: Tensor) -> Tensor:
        (result,) = runner.run([batch.contiguous()])
        assert isinstance(result, Tensor)
        return result

    return forward


def _instructions() -> tuple[str, ...]:
    """Instruction sets of this processor, where the system tells (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(f for f in value.split() if f.startswith(_INSTRUCTION_SETS)))
    return ()
