"""An ONNX member, built node by node."""

from __future__ import annotations

from pathlib import Path

import onnx
from member_files import batch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


def onnx_model(
    folder: Path,
    *,
    inputs: int = 1,
    outputs: int = 1,
    kind: int = TensorProto.FLOAT,
    samples: int | str = "batch",
) -> Tensor:
    """Writes w.onnx, a linear layer on the flattened image, and returns what it should give."""
    layer = nn.Linear(48, 3)
    nodes = [
        helper.make_node("Flatten", ["x0"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["cast", "weight", "bias"], ["y0"], transB=1),
        *(helper.make_node("Identity", ["y0"], [f"y{i}"]) for i in range(1, outputs)),
    ]
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info(f"x{i}", kind, [samples, 3, 4, 4]) for i in range(inputs)],
        [
            helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [samples, 3])
            for i in range(outputs)
        ],
        [
            numpy_helper.from_array(layer.weight.detach().numpy(), "weight"),
            numpy_helper.from_array(layer.bias.detach().numpy(), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "w.onnx")
    return layer(batch().flatten(1)).detach()
