"""Loads files that contain architecture and weights: TorchScript, torch.export and ONNX."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import MemberError

logger = logging.getLogger(__name__)

# Environment variables of torch and onnxruntime.
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NO_WEIGHTS_ONLY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def load_torchscript(path: Path, device: torch.device) -> nn.Module:
    """Load a TorchScript archive in evaluation mode.

    Args:
        path: the file.
        device: the device for the module.

    Raises:
        MemberError: the file is no TorchScript archive, or is damaged.
    """
    try:
        module: nn.Module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise MemberError(
            f"{path.name} is damaged or not a TorchScript archive ({_first_line(error)}); if it "
            "holds a state dict, name the architecture"
        ) from error
    return module.eval()


def load_exported(path: Path, device: torch.device) -> nn.Module:
    """Load a program that torch.export.save wrote.

    The program has no evaluation mode of its own: its mode was fixed when it was exported.

    torch.export.load can unpickle arbitrary objects, which is prevented here. But it also evaluates
    the program's symbolic shapes as Python code. So a .pt2 file needs as much trust as the FILE.py
    of an architecture.

    Args:
        path: the file.
        device: the device for the module.

    Raises:
        MemberError: the file is no exported program, or holds more than a program and its tensors.
    """
    # Imported here: it imports torch's compiler, which a worker without such members does not need.
    from torch.export.passes import move_to_device_pass

    _check_records(path)
    with _tensors_only():
        try:
            program = torch.export.load(path)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise MemberError(
                f"{path.name} cannot be read as an exported program ({_first_line(error)}); "
                "export and save it again, with plain tensors only, and with the version of torch "
                "that serves it"
            ) from error
    # This also changes the device of the tensors that the program creates while it runs.
    return move_to_device_pass(program, device).module()


def _check_records(path: Path) -> None:
    """Refuse a .pt2 file with a record that torch.export.load would run or unpickle without limits.

    Raises:
        MemberError: the file has such a record, or is no exported program.
    """
    from torch.export.pt2_archive.constants import (
        AOTINDUCTOR_DIR,
        CONSTANTS_DIR,
        MODELS_DIR,
        TENSOR_CONSTANT_FILENAME_PREFIX,
    )

    try:
        # torch.export.load uses this reader too, so both see the same records.
        records: list[str] = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        raise MemberError(
            f"{path.name} is damaged or not a .pt2 archive ({_first_line(error)}): write it with "
            "torch.export.save"
        ) from error
    # This reader ignores the case of a record's name, and the kind of slash in it.
    names = [record.replace("\\", "/").lower() for record in records]
    if any(name.startswith(AOTINDUCTOR_DIR) for name in names):
        raise MemberError(
            f"{path.name} is a compiled AOTInductor package, which is native code: save the "
            "exported program itself with torch.export.save"
        )
    if not any(name.startswith(MODELS_DIR) for name in names):
        raise MemberError(
            f"{path.name} holds no exported program in the format of torch 2.9 or newer: write it "
            "with torch.export.save of such a version"
        )
    for name in names:
        if not name.startswith(CONSTANTS_DIR):
            continue
        constant = name.removeprefix(CONSTANTS_DIR)
        is_tensor = constant.startswith(TENSOR_CONSTANT_FILENAME_PREFIX)
        if not is_tensor and not constant.endswith("_constants_config.json"):
            raise MemberError(
                f"{path.name} holds a constant that is no tensor ({constant}); it is refused, "
                "since unpickling runs whatever code it holds: export the model without it"
            )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make torch.load unpickle nothing but tensors within a block, whatever its arguments say."""
    saved = {name: os.environ.get(name) for name in (_FORCE_WEIGHTS_ONLY, _FORCE_NO_WEIGHTS_ONLY)}
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    os.environ.pop(_FORCE_NO_WEIGHTS_ONLY, None)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load_onnx(
    path: Path, device: torch.device, *, several_outputs: bool = False
) -> Callable[[Tensor], Any]:
    """Load an ONNX model as a function: float32 (N, channels, height, width) -> (N, outputs).

    On a GPU the model runs there only if onnxruntime has its CUDA provider. Otherwise it runs on
    the CPU, with a warning in the log.

    Args:
        path: the file.
        device: the device of the function's input and output.
        several_outputs: whether the model may have several outputs. The function then returns
            those as a dict by name.

    Raises:
        MemberError: onnxruntime is not installed, the file cannot be read, or the model's input or
            output is not exactly one tensor.
    """
    # onnxruntime reports its use to its makers, unless this is set before it is imported.
    os.environ[_NO_TELEMETRY] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MemberError(
            "ONNX members need onnxruntime: pip install 'torchserve-ensemble[onnx]', or in the "
            "server's environment pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between runs would keep the cores from the members that torch runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning(
                "%s runs on the CPU: onnxruntime has no CUDA provider here "
                "(pip install onnxruntime-gpu)",
                path.name,
            )
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise MemberError(
            f"{path.name} cannot be read as an ONNX model ({_first_line(error)}); a model with "
            "external data needs those files in extra_files, or save it as one file "
            "(torch.onnx.export(..., external_data=False))"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise MemberError(
            f"{path.name} takes {_signature(inputs)}; a member takes one batch of images, "
            "tensor(float)"
        )
    all_tensors = all(output.type.startswith("tensor(") for output in outputs)
    if not all_tensors or (len(outputs) != 1 and not several_outputs):
        raise MemberError(
            f"{path.name} gives {_signature(outputs)}; a member gives one tensor: export the "
            "model with its logits as the only output, or name a postprocess function"
        )
    name = inputs[0].name
    output_names = [output.name for output in outputs]

    def forward(batch: Tensor) -> Tensor | dict[str, Tensor]:
        arrays = session.run(None, {name: batch.numpy(force=True)})
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        return tensors[0] if len(tensors) == 1 else dict(zip(output_names, tensors, strict=True))

    return forward


def _signature(values: object) -> str:
    """Return the names and types of an ONNX model's inputs or outputs, as text for a message."""
    listed = [f"{value.name}: {value.type}" for value in values]  # type: ignore[attr-defined]
    return f"({', '.join(listed)})"


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's class name if it has none."""
    (line, *_) = str(error).strip().splitlines() or [type(error).__name__]
    return line
