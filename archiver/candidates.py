"""Ways to run members with another engine: each makes files that may take the place of the saved
members.

A candidate only says how its files are made. Whether they are kept, because their answers are right
and they are faster, `trial` finds out in the same way for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..handlers.members.compiled_record import CompiledExecutable
from ..handlers.members.loading import LoadedMember
from ..handlers.spec import Engine, EnsembleSpec, Precision
from .libraries import Autocast, compile_library
from .not_compiled import converter_errors
from .openvino_conversion import convert_onnx, convert_program, convert_torchscript, save_model
from .quantization import quantized
from .shared_backbone import Joint

NUM_EXPORTED_SAMPLES = 2
"""Programs are exported with two samples: torch.export would take a batch of one for a constant."""


@dataclass(frozen=True)
class Candidate:
    """One way to run one or several members.

    Attributes:
        positions: positions of the members in the ensemble, increasing.
        engine: runs the files.
        precision: the precision that the members compute in.
        make: writes the files, and returns their entry of the archive's record. Raises
            `NotCompiled` where that is not possible.
    """

    positions: tuple[int, ...]
    engine: Engine
    precision: Precision
    make: Callable[[], CompiledExecutable]


@dataclass(frozen=True)
class Candidates:
    """Makes candidates for the members of one ensemble: with OpenVINO on a CPU, else AOTInductor.

    Attributes:
        spec: the ensemble.
        folder: the folder that the spec's paths start from.
        loaded: its members as they were saved.
        work: the folder that the made files' names start from.
        device: where the members will run.
    """

    spec: EnsembleSpec
    folder: Path
    loaded: Sequence[LoadedMember]
    work: Path
    device: torch.device
    _converted: dict[tuple[int, ...], tuple[Any, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """The engine of all candidates."""
        return Engine.OPENVINO if self.device.type == "cpu" else Engine.AOT_INDUCTOR

    def of(
        self,
        positions: tuple[int, ...],
        precision: Precision,
        batch: Tensor,
        calibration: Tensor,
    ) -> Candidate:
        """One member alone, or several as one program with one input.

        Args:
            positions: of the members in the ensemble.
            precision: float32, bfloat16 or int8.
            batch: float32 (N, channels, height, width), at least `NUM_EXPORTED_SAMPLES`.
            calibration: the inputs on which int8 is calibrated.
        """
        make = (
            partial(self._openvino, positions, precision, batch, calibration)
            if self.engine is Engine.OPENVINO
            else partial(self._aot_inductor, positions, precision, batch)
        )
        return Candidate(positions, self.engine, precision, make)

    def _openvino(
        self, positions: tuple[int, ...], precision: Precision, batch: Tensor, calibration: Tensor
    ) -> CompiledExecutable:
        """Convert once for float32 and bfloat16, which differ in how the model is loaded."""
        with converter_errors():
            if positions not in self._converted:
                model = self._convert(positions, batch)
                saved = save_model(model, self.work, self._name(positions))
                self._converted[positions] = model, saved
            model, files = self._converted[positions]
            if precision is Precision.INT8:
                reduced = quantized(model, calibration)
                files = save_model(reduced, self.work, f"{self._name(positions)}-int8")
        return self._entry(positions, files, precision, batch, max_batch_size=None)

    def _convert(self, positions: tuple[int, ...], batch: Tensor) -> Any:
        member, module = self.spec.members[positions[0]], self.loaded[positions[0]].module
        if len(positions) == 1 and module is None:
            return convert_onnx(self.folder / member.weights, batch.shape[1:])
        if len(positions) == 1 and isinstance(module, torch.jit.ScriptModule):
            return convert_torchscript(module, batch[:NUM_EXPORTED_SAMPLES])
        return convert_program(self._export(self._program(positions), batch))

    def _aot_inductor(
        self, positions: tuple[int, ...], precision: Precision, batch: Tensor
    ) -> CompiledExecutable:
        def exported() -> torch.export.ExportedProgram:
            module = self._program(positions)
            if precision is Precision.BFLOAT16:
                module = Autocast(module, self.device.type)
            return self._export(module, batch)

        file = compile_library(exported, self.work, f"{self._name(positions)}-{precision}")
        max_batch_size = self._max_batch_size
        return self._entry(positions, (file,), precision, batch, max_batch_size=max_batch_size)

    def _program(self, positions: tuple[int, ...]) -> nn.Module:
        modules = [module for i in positions if (module := self.loaded[i].module) is not None]
        return modules[0] if len(positions) == 1 else Joint(modules)

    def _export(self, module: nn.Module, batch: Tensor) -> torch.export.ExportedProgram:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        # The operator of torch's fast path for attention is one that no other engine knows.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return torch.export.export(
                module,
                (batch[:NUM_EXPORTED_SAMPLES],),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=self._max_batch_size)},),
            )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)

    @property
    def _max_batch_size(self) -> int:
        """The largest number of samples that one call of an exported program takes."""
        return max(self.spec.runtime.micro_batch, NUM_EXPORTED_SAMPLES)

    def _entry(
        self,
        positions: tuple[int, ...],
        files: tuple[str, ...],
        precision: Precision,
        batch: Tensor,
        *,
        max_batch_size: int | None,
    ) -> CompiledExecutable:
        return CompiledExecutable(
            engine=str(self.engine),
            members=tuple(self.spec.members[position].name for position in positions),
            files=files,
            max_batch_size=max_batch_size,
            precision=str(precision),
            shape=tuple(batch.shape[1:]),
            difference=0.0,
        )

    def _name(self, positions: tuple[int, ...]) -> str:
        """The file name without its suffix."""
        first = self.spec.members[positions[0]].name
        return first if len(positions) == 1 else f"{first}-and-{len(positions) - 1}-more"
