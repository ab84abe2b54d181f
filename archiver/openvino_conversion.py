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
    """Convert an exported program to a model of OpenVINO.

    If two operations have the same inputs and weights, OpenVINO computes them once. A backbone
    that several members share is therefore computed once.

    Args:
        program: a program that takes float32 (N, channels, height, width) with variable N.

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
    # The decoder logs a traceback for each operator that the installed torch does not decompose.
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
        module: a module that takes float32 (N, channels, height, width).
        example: an input of the module.
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
    """Write a model to its two files.

    Args:
        model: an ``openvino.Model``.
        work: the folder in which the files are written.
        name: name of the files, without suffix.

    Returns:
        Paths of the ``.xml`` and the ``.bin`` file, relative to `work`.
    """
    # OpenVINO numbers operations across all models of a process, and builds must not depend on it.
    model.set_friendly_name(name)
    for number, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"operation{number}")
    xml, weights = f"{FOLDER}/{name}.xml", f"{FOLDER}/{name}.bin"
    import_openvino().save_model(model, work / xml, compress_to_fp16=False)
    return xml, weights


def _converted(decoder: Any, sample_shape: Sequence[int]) -> Any:
    """Return the ``openvino.Model`` of a program that one of OpenVINO's decoders reads."""
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    _let_batch_vary(model, sample_shape)
    return model


def _let_batch_vary(model: Any, sample_shape: Sequence[int]) -> None:
    """Fix every dimension of the input except the batch size, which makes kernels faster."""
    from openvino import PartialShape

    model.reshape(PartialShape([-1, *(int(size) for size in sample_shape)]))
