"""Compile members ahead of time (torch.export and AOTInductor), for machines like this one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..handlers.compiled import (
    FOLDER,
    OUTPUTS,
    PARITY,
    RECORD,
    CompiledMember,
    CompiledRecord,
    Target,
    load_library,
)
from ..handlers.errors import ArchiveError, MemberError
from ..handlers.execution import accelerate, wants_bfloat16
from ..handlers.members import LoadedMember, difference, load_member
from ..handlers.preprocess import preprocessors_of
from ..handlers.service import choose_device
from ..handlers.spec import EnsembleSpec, Member, Precision
from ..handlers.trial import trial_images

# Two differing samples: torch.export would take a batch of one for a constant.
_EXPORTED_WITH = 2
_TIMED = 7
_GAIN = 1.1


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
    _require_compiler()
    device = choose_device(spec, gpu=None)
    preprocessors, positions = preprocessors_of(spec, device)
    trials = trial_images(3)
    batches = [preprocessor([*trials, *samples]) for preprocessor in preprocessors]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / FOLDER).mkdir()
        made: dict[str, CompiledMember] = {}
        outputs: dict[str, Tensor] = {}
        files: dict[str, Path] = {}
        for member, position in zip(spec.members, positions, strict=True):
            started = time.perf_counter()
            compiler = _Compiler(
                spec=spec,
                member=member,
                loaded=load_member(spec, member, folder, device),
                batch=batches[position],
                work=work,
            )
            try:
                entry, library, found = compiler.best()
            except _NotCompiled as reason:
                say(f"member '{member.name}' is not compiled: {reason}")
                continue
            made[member.name], files[entry.file] = entry, library
            outputs[member.name] = found[: len(trials)].cpu().contiguous()
            say(
                f"member '{member.name}' compiled in {entry.precision}: its scores differ by at "
                f"most {entry.difference:.1e} ({time.perf_counter() - started:.0f} s)"
            )
        if made:
            (work / "record").write_text(CompiledRecord(Target.here(device), made).to_json())
            save_file(outputs, work / "outputs")
            files |= {RECORD: work / "record", OUTPUTS: work / "outputs"}
        yield files


class _NotCompiled(Exception):
    """Why a member stays as it was saved."""


class _Compiler:
    """Finds the fastest form of one member that answers as the member does."""

    def __init__(
        self, spec: EnsembleSpec, member: Member, loaded: LoadedMember, batch: Tensor, work: Path
    ) -> None:
        self._spec = spec
        self._member = member
        self._loaded = loaded
        self._batch = batch
        self._work = work
        self._most = max(spec.runtime.micro_batch, _EXPORTED_WITH)

    @torch.no_grad()
    def best(self) -> tuple[CompiledMember, Path, Tensor]:
        """The library, and its outputs for the batch.

        Raises:
            _NotCompiled: there is none.
            MemberError: ``precision: bfloat16`` is demanded and changes its answers.
        """
        module = self._loaded.module
        if module is None or isinstance(module, torch.jit.ScriptModule):
            saved = str(self._member.weights_format)
            raise _NotCompiled(f"it is saved as {saved}, and runs as that")
        expected = self._loaded(self._batch)
        wanted = self._spec.runtime.precision
        reduced = wants_bfloat16(self._spec, module, self._batch.device)
        problem = ""
        for precision in [Precision.BFLOAT16] * reduced + [Precision.FLOAT32]:
            library = self._compile(module, precision)
            entry = CompiledMember(
                file=f"{FOLDER}/{library.name}",
                precision=str(precision),
                shape=tuple(self._batch.shape[1:]),
                most=self._most,
                difference=0.0,
            )
            compiled = LoadedMember(
                self._member.name, load_library(entry, self._work, self._batch.device), None
            )
            # There may be more samples than fit at once.
            parts = torch.split(self._batch, self._most)
            found = torch.cat([compiled(part) for part in parts])
            changed = difference(expected, found, self._spec, self._member)
            if changed <= PARITY:
                self._require_faster(compiled)
                return replace(entry, difference=changed), library, found
            problem = f"in {precision} its scores differ by {changed:.1e}, more than {PARITY:g}"
            if wanted is Precision.BFLOAT16:
                raise MemberError(
                    f"member '{self._member.name}': {problem}; set runtime.precision to float32 "
                    "or auto"
                )
        raise _NotCompiled(problem)

    def _require_faster(self, compiled: LoadedMember) -> None:
        """Compare with the member as a worker would run it.

        Raises:
            _NotCompiled: small members are mostly calls, and gain nothing.
        """
        saved = accelerate(self._loaded, self._spec, self._member, self._batch)
        times: dict[str, list[float]] = {"saved": [], "compiled": []}
        for _ in range(_TIMED):
            for name, form in (("saved", saved), ("compiled", compiled)):
                started = time.perf_counter()
                form(self._batch[:_EXPORTED_WITH])
                times[name].append(1000 * (time.perf_counter() - started))
        before, after = min(times["saved"]), min(times["compiled"])
        if after > before / _GAIN:
            raise _NotCompiled(
                f"that makes it no faster ({after:.2g} ms, and {before:.2g} as saved)"
            )

    def _compile(self, module: nn.Module, precision: Precision) -> Path:
        """One library, for batches of 1 to ``runtime.micro_batch`` samples."""
        from torch._inductor import aoti_compile_and_package

        if precision is Precision.BFLOAT16:
            module = _Autocast(module, self._batch.device.type)
        name = f"{self._member.name}-{precision}"
        try:
            program = torch.export.export(
                module,
                (self._batch[:_EXPORTED_WITH],),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=self._most)},),
            )
            package = aoti_compile_and_package(
                program,
                package_path=str(self._work / f"{name}.pt2"),
                # freezing: weights as constants, laid out for the kernels that were chosen.
                # dynamic_threads: the worker's number of threads, not the build machine's.
                inductor_configs={"freezing": True, "cpp.dynamic_threads": True},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise _NotCompiled(f"{type(error).__name__}: {reason}") from error
        library = self._work / FOLDER / f"{name}.so"
        with zipfile.ZipFile(package) as opened:
            # E.g. an operator of a package of its own, which the library would call back for.
            sources = [n for n in opened.namelist() if n.endswith(".wrapper.cpp")]
            if any(b"proxy_executor_call_function" in opened.read(name) for name in sources):
                raise _NotCompiled("it has an operator that AOTInductor cannot compile")
            (inside,) = (entry for entry in opened.namelist() if entry.endswith(".so"))
            library.write_bytes(opened.read(inside))
        return library


class _Autocast(nn.Module):
    """A member in bfloat16, where `torch.autocast` finds that safe."""

    def __init__(self, module: nn.Module, device: str) -> None:
        super().__init__()
        self.module = module
        self.device = device

    def forward(self, batch: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            result: Tensor = self.module(batch)
        return result.float()


def _require_compiler() -> None:
    """The compiler that AOTInductor calls.

    Raises:
        ArchiveError: there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ArchiveError(
            f"runtime.compile needs a C++ compiler on the build machine, and there is no "
            f"{compiler}: install one (apt install g++), name it in CXX, or set "
            "runtime.compile to false"
        )
