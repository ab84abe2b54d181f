"""Converts members to models of OpenVINO."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..handlers.members.compiled_record import FOLDER
from ..handlers.members.openvino_model import import_openvino


def convert_program(program: torch.export.ExportedProgram) -> Any:
    """Convert an exported program.

    OpenVINO computes operations that occur twice with the same inputs once: those of a backbone
    that several members share, for example.

    Args:
        program: takes float32 (N, channels, height, width), any N.

    Returns:
        An ``openvino.Model`` with one input and one output.
    """
    import_openvino()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    (shape,) = (
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )
    # The decoder logs a traceback for each operator that this torch does not decompose.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    finally:
        root.setLevel(level)
    return _converted(decoder, shape[1:])


def convert_torchscript(module: torch.jit.ScriptModule, example: Tensor) -> Any:
    """Convert a TorchScript module to an ``openvino.Model``.

    Args:
        module: takes float32 (N, channels, height, width).
        example: such an input.
    """
    import_openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return _converted(TorchScriptPythonDecoder(module, example_input=(example,)), example.shape[1:])


def convert_onnx(path: Path, sample_shape: Sequence[int]) -> Any:
    """Read an ONNX file as an ``openvino.Model``.

    Args:
        path: the file.
        sample_shape: shape of one sample, (channels, height, width).
    """
    model = import_openvino().Core().read_model(path)
    _let_batch_vary(model, sample_shape)
    return model


def save_model(model: Any, work: Path, name: str) -> tuple[str, str]:
    """Write a model.

    Args:
        model: an ``openvino.Model``.
        work: the folder that the returned paths start from.
        name: of the files, without their suffixes.

    Returns:
        Paths of the ``.xml`` and the ``.bin`` file below `work`.
    """
    xml, weights = f"{FOLDER}/{name}.xml", f"{FOLDER}/{name}.bin"
    import_openvino().save_model(model, work / xml, compress_to_fp16=False)
    return xml, weights


def _converted(decoder: Any, sample_shape: Sequence[int]) -> Any:
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    _let_batch_vary(model, sample_shape)
    return model


def _let_batch_vary(model: Any, sample_shape: Sequence[int]) -> None:
    """Fix all dimensions of the input but the number of samples; kernels are faster that way."""
    from openvino import PartialShape

    model.reshape(PartialShape([-1, *(int(size) for size in sample_shape)]))
