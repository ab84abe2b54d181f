"""One program to one library: torch.export's to AOTInductor's."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..handlers.base.errors import ArchiveError
from ..handlers.members.aot_library import write_constants
from ..handlers.members.compiled_record import FOLDER
from .packing import constants_of, pack_weights


class NotCompiled(Exception):
    """Why a member stays as it was saved."""


def compile_library(
    exported: Callable[[], torch.export.ExportedProgram],
    work: Path,
    name: str,
    device: torch.device,
) -> str:
    """Compile a program.

    Returns:
        The library's path below `work`.

    Raises:
        NotCompiled: torch cannot.
    """
    from torch._inductor import aoti_compile_and_package

    file = f"{FOLDER}/{name}.so"
    with compiler_errors():
        package = aoti_compile_and_package(
            exported(),
            package_path=str(work / f"{name}.pt2"),
            inductor_configs={
                # Weights as constants, laid out for the kernels that were chosen.
                "freezing": True,
                "post_grad_custom_pre_pass": pack_weights,
                # The worker's number of threads, not the build machine's.
                "cpp.dynamic_threads": True,
                # Freezing leaves nothing to fold; else a library that is given its weights warns.
                "aot_inductor.use_runtime_constant_folding": True,
            },
        )
    with zipfile.ZipFile(package) as opened:
        # E.g. an operator of a package of its own, which the library would call back for.
        sources = [n for n in opened.namelist() if n.endswith(".wrapper.cpp")]
        if any(b"proxy_executor_call_function" in opened.read(name) for name in sources):
            raise NotCompiled("it has an operator that AOTInductor cannot compile")
        (inside,) = (entry for entry in opened.namelist() if entry.endswith(".so"))
        (work / file).write_bytes(opened.read(inside))
    if device.type == "cpu":
        with compiler_errors():
            write_constants(work / file, constants_of(work / file))
    return file


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Whatever torch's compiler raises, in a line.

    Raises:
        NotCompiled: with that line.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise NotCompiled(f"{type(error).__name__}: {reason}") from error


class Autocast(nn.Module):
    """A member in bfloat16, where `torch.autocast` finds that safe."""

    def __init__(self, module: nn.Module, device: str) -> None:
        super().__init__()
        self.module = module
        self.device = device

    def forward(self, batch: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            result: Tensor = self.module(batch)
        return result.float()


def require_compiler() -> None:
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
