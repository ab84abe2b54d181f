"""Compiles members to shared libraries for a GPU, with torch's AOTInductor."""

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
    """Compile an exported program to a shared library for the device of its example inputs.

    Args:
        exported: exports the program. It is called here so that its errors become `NotCompiled`.
        work: the folder in which the library is written.
        name: name of the library's file, without suffix.

    Returns:
        Path of the library, relative to `work`.

    Raises:
        NotCompiled: torch cannot export or compile the program.
    """
    from torch._inductor import aoti_compile_and_package

    file = f"{FOLDER}/{name}.so"
    with converter_errors():
        package = aoti_compile_and_package(
            exported(),
            package_path=str(work / f"{name}.pt2"),
            inductor_configs={
                # Weights become constants, whose memory layout suits the kernels.
                "freezing": True,
                # A library would otherwise look for the GPU's kernels in files of this machine's
                # cache.
                "aot_inductor.embed_kernel_binary": True,
            },
        )
    with zipfile.ZipFile(package) as opened:
        # For an operator that it cannot compile, e.g. one of another package, AOTInductor generates
        # C++ that calls back into torch. The library alone cannot do that.
        sources = [entry for entry in opened.namelist() if entry.endswith(".wrapper.cpp")]
        if any(b"proxy_executor_call_function" in opened.read(source) for source in sources):
            raise NotCompiled("it has an operator that AOTInductor cannot compile")
        (library,) = (entry for entry in opened.namelist() if entry.endswith(".so"))
        (work / file).write_bytes(opened.read(library))
    return file


class Autocast(nn.Module):
    """A member that computes in bfloat16 the operations for which torch.autocast chooses it."""

    def __init__(self, module: nn.Module, device: str) -> None:
        """Wrap a module.

        Args:
            module: the member's module.
            device: type of the device, as ``torch.autocast`` takes it, e.g. ``cuda``.
        """
        super().__init__()
        self.module = module
        self.device = device

    def forward(self, batch: Tensor) -> Tensor:
        """Return the member's raw outputs for a batch, as float32."""
        with torch.autocast(self.device, torch.bfloat16):
            result: Tensor = self.module(batch)
        return result.float()


def require_compiler() -> None:
    """Check that the C++ compiler is installed that AOTInductor calls.

    Raises:
        ArchiveError: there is no such compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ArchiveError(
            "runtime.engine: aot_inductor needs a C++ compiler on the build machine, and there is "
            f"no {compiler}: install one (apt install g++), name it in CXX, or set "
            "runtime.engine to torch"
        )
