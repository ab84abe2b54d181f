"""Candidates: ways to run members with another engine than torch, from files made at build.

This module only makes the files. `trial` then checks and times all candidates in the same way, and
the build keeps those whose answers are right and that are faster than the saved members.
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
from .not_compiled import NotCompiled, converter_errors
from .openvino_conversion import convert_onnx, convert_program, convert_torchscript, save_model
from .quantization import AccuracyGoal, quantized
from .shared_backbone import Joint

NUM_EXPORTED_SAMPLES = 2
"""Samples in the batch with which a module is exported.

torch.export would take a batch size of one for a constant, so it is two.
"""


@dataclass(frozen=True)
class Candidate:
    """One way to run one member, or several members at once.

    Attributes:
        positions: positions of the members in the ensemble, increasing.
        engine: the engine that runs the files.
        precision: the precision that the members compute in.
        label: how tables call the precision.
        make: function that writes the files and returns their entry for the archive's record. It
            raises `NotCompiled` if the engine cannot run the members.
    """

    positions: tuple[int, ...]
    engine: Engine
    precision: Precision
    label: str
    make: Callable[[], CompiledExecutable]


@dataclass(frozen=True)
class CandidateFactory:
    """Describes the candidates for one ensemble's members: OpenVINO on a CPU, else AOTInductor.

    Attributes:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.
        loaded: the ensemble's members as they were saved.
        work: the folder in which candidates write their files.
        device: the device on which the members will run.
    """

    spec: EnsembleSpec
    folder: Path
    loaded: Sequence[LoadedMember]
    work: Path
    device: torch.device
    _converted: dict[tuple[int, ...], tuple[Any, tuple[str, ...]]] = field(default_factory=dict)
    """Positions of members -> their model of OpenVINO, if it is needed again, and its files."""

    @property
    def engine(self) -> Engine:
        """The engine of all candidates."""
        return Engine.OPENVINO if self.device.type == "cpu" else Engine.AOT_INDUCTOR

    def candidate(
        self,
        positions: tuple[int, ...],
        precision: Precision,
        batch: Tensor,
        calibration: Tensor,
        goal: AccuracyGoal | None = None,
    ) -> Candidate:
        """Describe how to run one member alone, or several members that take the same input.

        Nothing is converted or written before `Candidate.make` is called.

        Args:
            positions: positions of the members in the ensemble.
            precision: the precision to compute in.
            batch: example inputs, float32 (N, channels, height, width), at least
                `NUM_EXPORTED_SAMPLES`.
            calibration: the inputs on which int8 is calibrated, (N, channels, height, width).
            goal: what int8 must reach by leaving some layers as they are; None: every layer is
                quantized.
        """
        make = (
            partial(self._make_openvino, positions, precision, batch, calibration, goal)
            if self.engine is Engine.OPENVINO
            else partial(self._make_aot_inductor, positions, precision, batch)
        )
        label = str(precision) if goal is None else f"{precision} in part"
        return Candidate(positions, self.engine, precision, label, make)

    def _make_openvino(
        self,
        positions: tuple[int, ...],
        precision: Precision,
        batch: Tensor,
        calibration: Tensor,
        goal: AccuracyGoal | None,
    ) -> CompiledExecutable:
        """Write a model of OpenVINO.

        Float32 and bfloat16 use the same files: only the option with which the model is loaded
        differs. So members are converted once, and int8 is made from that model.
        """
        with converter_errors():
            if positions not in self._converted:
                # Models of large members take gigabytes. Only int8, which is tried first, needs one
                # a second time.
                self._converted.clear()
                model = self._convert(positions, batch)
                saved = save_model(model, self.work, self._name(positions))
                needed_again = precision is Precision.INT8
                self._converted[positions] = model if needed_again else None, saved
                del model
            files: tuple[str, ...]
            model, files = self._converted[positions]
            if precision is Precision.INT8:
                suffix = "int8" if goal is None else "int8-in-part"
                files = save_model(
                    quantized(model, calibration, goal),
                    self.work,
                    f"{self._name(positions)}-{suffix}",
                )
        return self._entry(positions, files, precision, batch, max_batch_size=None)

    def _convert(self, positions: tuple[int, ...], batch: Tensor) -> Any:
        """Convert members to one ``openvino.Model``.

        ONNX and TorchScript have readers of their own in OpenVINO; other members are exported.
        """
        member, module = self.spec.members[positions[0]], self.loaded[positions[0]].module
        if len(positions) == 1 and module is None:
            return convert_onnx(self.folder / member.weights, batch.shape[1:])
        if len(positions) == 1 and isinstance(module, torch.jit.ScriptModule):
            return convert_torchscript(module, batch[:NUM_EXPORTED_SAMPLES])
        return convert_program(self._export(self._module(positions), batch))

    def _make_aot_inductor(
        self, positions: tuple[int, ...], precision: Precision, batch: Tensor
    ) -> CompiledExecutable:
        """Write a shared library of AOTInductor."""

        def exported() -> torch.export.ExportedProgram:
            module = self._module(positions)
            if precision is Precision.BFLOAT16:
                module = Autocast(module, self.device.type)
            return self._export(module, batch)

        file = compile_library(exported, self.work, f"{self._name(positions)}-{precision}")
        max_batch_size = self._max_batch_size
        return self._entry(positions, (file,), precision, batch, max_batch_size=max_batch_size)

    def _module(self, positions: tuple[int, ...]) -> nn.Module:
        """Return a member's module, or one module that computes several members.

        Raises:
            NotCompiled: the member is not a torch module.
        """
        modules = [module for i in positions if (module := self.loaded[i].module) is not None]
        if not modules:
            raise NotCompiled("it is no torch module, and cannot be exported")
        return modules[0] if len(positions) == 1 else Joint(modules)

    def _export(self, module: nn.Module, batch: Tensor) -> torch.export.ExportedProgram:
        """Export a module for batches of 1 to `_max_batch_size` samples."""
        fast_path = torch.backends.mha.get_fastpath_enabled()
        # Torch's fast path for attention is an operator of its own, which other engines lack.
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
        """The largest number of samples that one call of an exported module takes."""
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
        """Return the entry for the archive's record; `trial` measures the difference later."""
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
        """Return the name, without suffix, for the files of these members."""
        first = self.spec.members[positions[0]].name
        return first if len(positions) == 1 else f"{first}-and-{len(positions) - 1}-more"
