"""One program to one library: torch.export's to AOTInductor's."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..handlers.base.errors import ArchiveError
from ..handlers.members.compiled_record import FOLDER
from .not_compiled import NotCompiled, converter_errors


def compile_library(
    exported: Callable[[], torch.export.ExportedProgram],
    work: Path,
    name: str,
) -> str:
    """Compile a program for the device that its example inputs are on.

    Returns:
        The library's path below `work`.

    Raises:
        NotCompiled: torch cannot.
    """
    from torch._inductor import aoti_compile_and_package

    file = f"{FOLDER}/{name}.so"
    with converter_errors():
        package = aoti_compile_and_package(
            exported(),
            package_path=str(work / f"{name}.pt2"),
            inductor_configs={
                # Weights as constants, laid out for the kernels that were chosen.
                "freezing": True,
                # A library would otherwise look for the GPU's kernels in files of this machine's
                # cache.
                "aot_inductor.embed_kernel_binary": True,
            },
        )
    with zipfile.ZipFile(package) as opened:
        # E.g. an operator of a package of its own, which the library would call back for.
        sources = [n for n in opened.namelist() if n.endswith(".wrapper.cpp")]
        if any(b"proxy_executor_call_function" in opened.read(name) for name in sources):
            raise NotCompiled("it has an operator that AOTInductor cannot compile")
        (inside,) = (entry for entry in opened.namelist() if entry.endswith(".so"))
        (work / file).write_bytes(opened.read(inside))
    return file


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
            "runtime.engine: aot_inductor needs a C++ compiler on the build machine, and there is "
            f"no {compiler}: install one (apt install g++), name it in CXX, or set "
            "runtime.engine to torch"
        )
