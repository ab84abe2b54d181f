"""Step: members of every weights format in every precision give the scores of the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.members.eager_optimisations import is_bfloat16_fast
from torchserve_ensemble.handlers.members.fused import FusedMembers

from .ensembles import (
    SIDE,
    TOLERANCE,
    WIDTH_OF_LARGE,
    inputs,
    logged,
    network_of,
    require_right,
    right_scores,
    save_member,
    write_spec,
)
from .network import Network
from .rows import Skipped, Step

_NUM_FUSED = 8


def check(step: Step) -> None:
    """Check each format in each precision, and members that run fused."""
    for name, save in _FORMATS.items():
        for precision in ("float32", "bfloat16", "auto"):
            with step.row(f"{name}, {precision}") as row:
                row.detail = _check_format(step, save, precision)
    with step.row(f"{_NUM_FUSED} small members, fused") as row:
        row.detail = _check_fused(step)
    with step.row("pixels, resized and normalised on the device") as row:
        row.detail = _check_pixels(step)


def _check_format(
    step: Step, save: Callable[[Path, Network], dict[str, object]], precision: str
) -> str:
    module, batch = network_of(0, WIDTH_OF_LARGE), inputs(6)
    member = save(step.folder, module)
    runtime = {"engine": "torch", "precision": precision}
    spec = write_spec(step.folder, [member], runtime=runtime)
    expected = right_scores([module], batch)
    with logged() as messages:
        loaded = Runtime.load(spec, step.folder, step.device)
    changed = require_right(loaded.run(list(batch)), expected, TOLERANCE[precision])
    reduced = any("runs in bfloat16" in message for message in messages)
    is_reduced_expected = precision == "bfloat16" or (
        precision == "auto" and is_bfloat16_fast(step.device)
    )
    changes_precision = member.get("format") != "torchscript" and "onnx" not in str(member)
    assert reduced == (is_reduced_expected and changes_precision), (
        f"bfloat16: {reduced}; {messages}"
    )
    ran_in = "bfloat16" if reduced else "float32"
    on_cpu = any("runs on the CPU" in message for message in messages)
    where = ", on the CPU: onnxruntime has no CUDA provider" if on_cpu else ""
    return f"ran in {ran_in}{where}; largest difference {changed:.1e}"


def _save_safetensors(folder: Path, module: Network) -> dict[str, object]:
    return save_member(folder, "safetensors", module)


def _save_state_dict(folder: Path, module: Network) -> dict[str, object]:
    torch.save(module.state_dict(), folder / "state.pth")
    return save_member(folder, "state", module) | {"weights": "state.pth"}


def _save_torchscript(folder: Path, module: Network) -> dict[str, object]:
    traced = torch.jit.trace(module, inputs(2))  # type: ignore[no-untyped-call]
    traced.save(str(folder / "script.pt"))
    return {"name": "script", "weights": "script.pt", "format": "torchscript"}


def _save_exported(folder: Path, module: Network) -> dict[str, object]:
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (inputs(2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "exported.pt2")
    return {"name": "exported", "weights": "exported.pt2"}


def _save_onnx(folder: Path, module: Network) -> dict[str, object]:
    """Write the network node by node, which needs no package that exports."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: dict[str, Tensor] = {}
    previous = "images"
    for number, layer in enumerate([*module.features, module.head]):
        names = [f"{name}{number}" for name in layer.state_dict() if "tracked" not in name]
        tensors = [value for key, value in layer.state_dict().items() if "tracked" not in key]
        weights |= dict(zip(names, tensors, strict=True))
        kind, attributes = _onnx_operator(layer)
        output = f"output{number}"
        nodes.append(helper.make_node(kind, [previous, *names], [output], **attributes))
        previous = output
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(previous, TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "member.onnx")
    return {"name": "onnx", "weights": "member.onnx"}


def _onnx_operator(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """The operator of ONNX that computes a layer, and its attributes."""
    if isinstance(layer, nn.Conv2d):
        return "Conv", {"strides": list(layer.stride), "pads": [1, 1, 1, 1]}
    if isinstance(layer, nn.BatchNorm2d):
        return "BatchNormalization", {"epsilon": layer.eps}
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}
    operators = {nn.ReLU: "Relu", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}
    return operators[type(layer)], {}


_FORMATS: dict[str, Callable[[Path, Network], dict[str, object]]] = {
    "safetensors": _save_safetensors,
    "state dict": _save_state_dict,
    "TorchScript": _save_torchscript,
    "exported program": _save_exported,
    "ONNX": _save_onnx,
}


def _check_fused(step: Step) -> str:
    modules = [network_of(seed) for seed in range(_NUM_FUSED)]
    members = [save_member(step.folder, f"m{i}", each) for i, each in enumerate(modules)]
    spec, batch = write_spec(step.folder, members), inputs(6)
    runtime = Runtime.load(spec, step.folder, step.device)
    kinds = [type(each) for each in runtime.executables.joint]
    assert kinds == [FusedMembers], "the members are not fused: fused outputs differ from single"
    changed = require_right(
        runtime.run(list(batch)), right_scores(modules, batch), TOLERANCE["float32"]
    )
    return f"largest difference {changed:.1e}"


def _check_pixels(step: Step) -> str:
    """Compare scores of images in bytes, of which the device makes the inputs."""
    module = network_of(0, WIDTH_OF_LARGE)
    spec = write_spec(step.folder, [save_member(step.folder, "member", module)])
    generator = torch.Generator().manual_seed(2)
    images = [
        torch.randint(0, 256, (3, 40 + number, 64), dtype=torch.uint8, generator=generator)
        for number in range(5)
    ]
    scores = [
        Runtime.load(spec, step.folder, device).run(images).scores
        for device in (torch.device("cpu"), step.device)
    ]
    changed = float((scores[0] - scores[1]).abs().max())
    assert changed <= TOLERANCE["float32"], f"scores differ by {changed:.1e} from the CPU's"
    return f"largest difference {changed:.1e}"
