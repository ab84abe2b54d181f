"""Ways to compile members: each makes files that may take the place of the saved members.

A candidate only says how its files are made. Whether they are kept, because their answers are right
and they are faster, `trial` finds out in the same way for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..handlers.members.compiled_record import CompiledExecutable, Engine
from ..handlers.members.fused import FusedMembers
from ..handlers.members.loading import LoadedMember
from ..handlers.spec import EnsembleSpec, Precision
from .libraries import Autocast, compile_library, compiler_errors
from .quantization import quantized
from .shared_backbone import Joint

NUM_EXPORTED_SAMPLES = 2
"""Programs are exported with two samples: torch.export would take a batch of one for a constant."""

_FUSED_BATCH_SIZES = (4, 16)
"""Batch sizes of compiled fused members. Other sizes are split into calls of these sizes, and the
last call is padded."""


@dataclass(frozen=True)
class Candidate:
    """One way to compile one or several members.

    Attributes:
        positions: positions of the members in the ensemble, increasing.
        precision: the precision that the members compute in.
        compile: writes the files, and returns their entry of the archive's record. Raises
            `NotCompiled` where torch cannot.
        num_timed_samples: samples of the batch on which it is timed.
    """

    positions: tuple[int, ...]
    precision: Precision
    compile: Callable[[], CompiledExecutable]
    num_timed_samples: int = NUM_EXPORTED_SAMPLES


@dataclass(frozen=True)
class Candidates:
    """Makes candidates for the members of one ensemble.

    Attributes:
        spec: the ensemble.
        loaded: its members as they were saved.
        work: the folder that the files' names start from.
    """

    spec: EnsembleSpec
    loaded: Sequence[LoadedMember]
    work: Path

    @property
    def max_batch_size(self) -> int:
        """The largest number of samples that one call of a dynamic library takes."""
        return max(self.spec.runtime.micro_batch, NUM_EXPORTED_SAMPLES)

    def single(
        self,
        position: int,
        module: nn.Module,
        precision: Precision,
        batch: Tensor,
        calibration: Tensor,
    ) -> Candidate:
        """One member, for any number of samples.

        Args:
            position: of the member in the ensemble.
            module: the member's module.
            precision: float32, bfloat16 or int8.
            batch: float32 (N, channels, height, width), at least `NUM_EXPORTED_SAMPLES`.
            calibration: the inputs on which int8 is calibrated.
        """
        name = f"{self.spec.members[position].name}-{precision}"

        def program() -> torch.export.ExportedProgram:
            return self._export(module, batch)

        def quantized_program() -> torch.export.ExportedProgram:
            example = batch[:NUM_EXPORTED_SAMPLES]
            with compiler_errors():
                reduced = quantized(module, self._any_number(), example, calibration)
            return self._export(reduced, batch)

        def bfloat16_program() -> torch.export.ExportedProgram:
            return self._export(Autocast(module, batch.device.type), batch)

        programs = {
            Precision.FLOAT32: program,
            Precision.BFLOAT16: bfloat16_program,
            Precision.INT8: quantized_program,
        }
        make = partial(self._compile_dynamic, (position,), precision, programs[precision], name)
        return Candidate((position,), precision, partial(make, batch))

    def shared_backbone(
        self, positions: tuple[int, ...], precision: Precision, batch: Tensor
    ) -> Candidate:
        """Members that share a backbone, which then is computed once.

        Args:
            positions: of the members in the ensemble.
            precision: float32 or bfloat16.
            batch: float32 (N, channels, height, width).
        """
        name = f"shared-backbone-of-{self.spec.members[positions[0]].name}-{precision}"

        def program() -> torch.export.ExportedProgram:
            modules = [module for i in positions if (module := self.loaded[i].module) is not None]
            joint: nn.Module = Joint(modules)
            if precision is Precision.BFLOAT16:
                joint = Autocast(joint, batch.device.type)
            return self._export(joint, batch)

        make = partial(self._compile_dynamic, positions, precision, program, name)
        return Candidate(positions, precision, partial(make, batch))

    def fused(self, fused: FusedMembers, batch: Tensor) -> Candidate:
        """Small members of one architecture, on their stacked weights.

        torch.vmap takes the number of samples for a constant, so each library has a fixed one.

        Args:
            fused: the members as they run without being compiled.
            batch: float32 (N, channels, height, width).
        """
        name = f"fused-{self.spec.members[fused.members[0]].name}"

        def program(num_samples: int) -> torch.export.ExportedProgram:
            example = batch.new_zeros((num_samples, *batch.shape[1:]))
            # torch.vmap becomes plain operators, which torch.export takes.
            graph = make_fx(lambda x: fused(x).contiguous(), _allow_non_fake_inputs=True)(example)
            return torch.export.export(graph, (example,))

        def compile_all() -> CompiledExecutable:
            return CompiledExecutable(
                engine=Engine.AOT_INDUCTOR,
                members=self._names(fused.members),
                files=tuple(
                    compile_library(partial(program, n), self.work, f"{name}-{n}", batch.device)
                    for n in _FUSED_BATCH_SIZES
                ),
                batch_sizes=_FUSED_BATCH_SIZES,
                dynamic=False,
                precision=str(Precision.FLOAT32),
                shape=tuple(batch.shape[1:]),
                difference=0.0,
            )

        return Candidate(
            fused.members, Precision.FLOAT32, compile_all, num_timed_samples=_FUSED_BATCH_SIZES[-1]
        )

    def _compile_dynamic(
        self,
        positions: tuple[int, ...],
        precision: Precision,
        program: Callable[[], torch.export.ExportedProgram],
        name: str,
        batch: Tensor,
    ) -> CompiledExecutable:
        """Compile one library for any number of samples up to `max_batch_size`."""
        return CompiledExecutable(
            engine=Engine.AOT_INDUCTOR,
            members=self._names(positions),
            files=(compile_library(program, self.work, name, batch.device),),
            batch_sizes=(self.max_batch_size,),
            dynamic=True,
            precision=str(precision),
            shape=tuple(batch.shape[1:]),
            difference=0.0,
        )

    def _export(self, module: nn.Module, batch: Tensor) -> torch.export.ExportedProgram:
        example = batch[:NUM_EXPORTED_SAMPLES]
        return torch.export.export(module, (example,), dynamic_shapes=self._any_number())

    def _any_number(self) -> tuple[dict[int, Any], ...]:
        """The dynamic shapes of a program that takes any number of samples."""
        return ({0: torch.export.Dim("batch", min=1, max=self.max_batch_size)},)

    def _names(self, positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.spec.members[position].name for position in positions)
