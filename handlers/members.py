"""Members: a weights file and an architecture become a callable on a device."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from .errors import MemberError
from .spec import EnsembleSpec, Member, Output, WeightsFormat
from .strict_yaml import nearest
from .tasks import Task

TORCHVISION = "torchvision.models."
_SHOWN_KEYS = 5


@dataclass(frozen=True)
class LoadedMember:
    """A member on its device.

    Attributes:
        name: as in the spec.
        forward: float32 (N, channels, height, width) -> float32 (N, outputs), or (N,).
        module: what `forward` runs, where it is a torch module.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    module: nn.Module | None

    def __call__(self, batch: Tensor) -> Tensor:
        """Raw outputs, float32 (N, outputs)."""
        raw = self.forward(batch)
        if not isinstance(raw, Tensor):
            raise MemberError(
                f"member '{self.name}': forward gave {type(raw).__name__}, not one tensor; wrap "
                "the model so that it returns its logits alone"
            )
        raw = raw.float()
        return raw.unsqueeze(1) if raw.dim() == 1 else raw


def load_member(
    spec: EnsembleSpec, member: Member, folder: Path, device: torch.device
) -> LoadedMember:
    """Load one member, ready to run: on the device, in evaluation mode, without gradients.

    Args:
        spec: the ensemble.
        member: one of its members.
        folder: where the files that the spec names are.
        device: where the member lives.

    Raises:
        MemberError: names the member, the file, the cause and the remedy.
    """
    path = folder / member.weights
    loaders: Mapping[WeightsFormat, Callable[[], Any]] = {
        WeightsFormat.SAFETENSORS: lambda: _with_weights(member, path, folder, device),
        WeightsFormat.STATE_DICT: lambda: _with_weights(member, path, folder, device),
        WeightsFormat.TORCHSCRIPT: lambda: _torchscript(path, device),
        WeightsFormat.EXPORTED: lambda: _exported(path, device),
        WeightsFormat.ONNX: lambda: _onnx(path, device),
    }
    try:
        loaded = loaders[member.weights_format]()
    except torch.OutOfMemoryError:
        raise
    except MemberError as error:
        raise MemberError(f"member '{member.name}': {error}") from error
    except Exception as error:
        raise MemberError(
            f"member '{member.name}': {member.weights} cannot be loaded as "
            f"{member.weights_format}: {_first_line(error)}"
        ) from error
    if isinstance(loaded, nn.Module):
        loaded.requires_grad_(False)
        return LoadedMember(member.name, loaded, loaded)
    return LoadedMember(member.name, loaded, None)


def scores(
    raw: Tensor, task: Task, output: Output, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Raw outputs to scores.

    Classification: ``softmax(raw / temperature)`` (temperature scaling: Guo et al. 2017). Presence
    and multilabel: ``sigmoid(raw / temperature)``; a presence member with two outputs, [absent,
    present], gives the softmax's second column, which is the sigmoid of their difference.

    Args:
        raw: float32 (N, outputs).
        task: the kind of answer.
        output: what the member gives.
        temperature: divides logits.

    Returns:
        Scores, float32 (N, C score labels), and the logits that they come from, or None.
    """
    two_columns = task is Task.PRESENCE and raw.shape[1] == 2
    if output is not Output.LOGITS:
        return (raw[:, 1:] if two_columns else raw), None
    logits = (raw[:, 1:] - raw[:, :1] if two_columns else raw) / temperature
    if task is Task.CLASSIFICATION:
        return logits.softmax(dim=1), logits
    return logits.sigmoid(), logits


@torch.inference_mode()
def check_member(loaded: LoadedMember, spec: EnsembleSpec, member: Member, batch: Tensor) -> None:
    """Run a member once and compare what comes with what the spec says.

    Args:
        loaded: the member.
        spec: the ensemble.
        member: the member's part of the spec.
        batch: at least three samples, float32 (N, channels, height, width).

    Raises:
        MemberError: it fails, gives another number of outputs, no finite numbers, no probabilities
            where it should, or answers that depend on the other samples of the batch.
    """
    where = f"member '{loaded.name}'"
    try:
        together = loaded(batch)
        alone = loaded(batch[:1])
    except (MemberError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        hint = (
            "; export with a dynamic batch dimension (torch.export.Dim('batch'))"
            if member.weights_format is WeightsFormat.EXPORTED
            else "; compare the member's preprocessing with what it was trained on"
        )
        raise MemberError(
            f"{where} fails on a batch of {tuple(batch.shape)}: {_first_line(error)}{hint}"
        ) from error
    columns = len(spec.score_labels)
    fitting = {columns, 2} if spec.task is Task.PRESENCE else {columns}
    if together.dim() != 2 or len(together) != len(batch) or together.shape[1] not in fitting:
        raise MemberError(
            f"{where} gives {tuple(together.shape)} for {len(batch)} samples; the spec has "
            f"{columns} score labels, so it must be ({len(batch)}, {columns}): correct the labels "
            "or the architecture's number of outputs"
        )
    if not together.isfinite().all():
        raise MemberError(f"{where} gives numbers that are not finite; its weights are damaged")
    if spec.output_of(member) is Output.PROBABILITIES and not (
        (together >= -1e-3) & (together <= 1 + 1e-3)
    ).all():
        raise MemberError(f"{where} gives numbers outside 0 to 1; its output is logits")
    if not torch.allclose(together[:1], alone, rtol=1e-2, atol=1e-3):
        raise MemberError(
            f"{where} answers one sample differently alone and in a batch: it was saved in "
            "training mode (call model.eval() before exporting)"
        )


def _with_weights(member: Member, path: Path, folder: Path, device: torch.device) -> nn.Module:
    model = _architecture(member, folder)
    state = _read_state(member, path)
    _check_keys(model, state, path)
    model.load_state_dict(state, strict=True)
    return model.to(device).eval()


def _read_state(member: Member, path: Path) -> dict[str, Tensor]:
    if member.weights_format is WeightsFormat.SAFETENSORS:
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise MemberError(f"{path.name} is not a whole safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MemberError(
            f"{path.name} cannot be loaded as plain weights: {_first_line(error)}. A whole pickled "
            "module is refused, since unpickling runs whatever code it holds; save the weights "
            "alone, torch.save(model.state_dict(), ...) or safetensors.torch.save_file"
        ) from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise MemberError(
            f"{path.name} holds {type(content).__name__}, not a state dict: save "
            "model.state_dict()"
        )
    return content


def _check_keys(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if not (missing or unexpected or shapes):
        return
    problems = [
        f"{what}: {', '.join(keys[:_SHOWN_KEYS])}"
        + (f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else "")
        for what, keys in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("other shapes", shapes),
        )
        if keys
    ]
    hint = ""
    for prefix in ("module.", "model.", "_orig_mod."):
        if unexpected and {key.removeprefix(prefix) for key in unexpected} == set(missing):
            hint = f"; every key has the prefix '{prefix}': save the inner module's state dict"
    raise MemberError(
        f"{path.name} does not fit the architecture ({'; '.join(problems)}){hint or '; check its arguments'}"
    )


def _architecture(member: Member, folder: Path) -> nn.Module:
    text = member.architecture or ""
    if text.startswith(TORCHVISION):
        name = text.removeprefix(TORCHVISION)
        if name not in torchvision.models.list_models(module=torchvision.models):
            known = torchvision.models.list_models(module=torchvision.models)
            raise MemberError(f"torchvision.models has no '{name}'{nearest(name, known)}")
        build: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
        arguments = {"weights": None, **member.arguments}
    elif member.architecture_file is not None:
        build = _from_file(folder, member.architecture_file, text.partition(".py:")[2])
        arguments = dict(member.arguments)
    else:
        raise MemberError(
            f"architecture '{text}' is neither torchvision.models.NAME nor FILE.py:CLASS"
        )
    try:
        model = build(**arguments)
    except Exception as error:
        raise MemberError(
            f"{text}({', '.join(f'{k}={v!r}' for k, v in member.arguments.items())}) failed: "
            f"{_first_line(error)}; its arguments are {inspect.signature(build)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise MemberError(f"{text} gave {type(model).__name__}, not a torch.nn.Module")
    return model


def _from_file(folder: Path, file: str, name: str) -> Callable[..., nn.Module]:
    module_name = f"_member_code_{abs(hash((str(folder.resolve()), file)))}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, folder / file)
        if spec is None or spec.loader is None:
            raise MemberError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with _import_path(folder):
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise MemberError(
                f"{file} cannot be imported: {type(error).__name__}: {error} (modules that it "
                "imports from the spec's folder must be listed in extra_files)"
            ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise MemberError(f"{file} has no class or function '{name}'{nearest(name, known)}")
    build: Callable[..., nn.Module] = found
    return build


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _torchscript(path: Path, device: torch.device) -> nn.Module:
    module: nn.Module = torch.jit.load(path, map_location=device)
    return module.eval()


def _exported(path: Path, device: torch.device) -> nn.Module:
    program = torch.export.load(path)
    # An exported module has no eval(): its mode was fixed when it was exported.
    return program.module().to(device)


def _onnx(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MemberError(
            "ONNX members need onnxruntime: pip install 'torchserve-ensemble[onnx]', or in the "
            "server's environment pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in wanted if provider in available]
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[*providers, "CPUExecutionProvider"]
    )
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise MemberError(f"{path.name} has {len(inputs)} inputs; a member takes one image batch")
    name = inputs[0].name

    def forward(batch: Tensor) -> Tensor:
        (first, *_) = session.run(None, {name: batch.cpu().numpy()})
        return torch.from_numpy(first).to(device)

    return forward


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
