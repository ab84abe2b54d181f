"""Helpers that make archives of single models for stock TorchServe, with torch-model-archiver."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
import yaml
from torch import Tensor, nn

LABELS = ("ash", "oak", "elm", "fir", "yew", "box")

MODEL_FILE = """
from torchvision.models.{module} import {network}


class Classifier({network}):
    def __init__(self):
        super().__init__({arguments})
"""


_LOGIT_SPREAD = 3.0
"""Standard deviation of each label's logits over the images, about that of a trained network."""


def network(name: str, seed: int, images: Tensor) -> nn.Module:
    """Make a torchvision network of random weights whose scores depend strongly on the image.

    A new network gives all images nearly the same scores, so any two would seem to agree. Here the
    statistics of batch norm are computed from the images, and the last layer spreads the logits.

    Args:
        name: name of torchvision's builder.
        seed: seed of the weights.
        images: preprocessed images (N, 3, height, width) float32.
    """
    torch.manual_seed(seed)
    module: nn.Module = torchvision.models.get_model(name, num_classes=len(LABELS))
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # Then the statistics are means over all batches, not moving means.
    head = [each for each in module.modules() if isinstance(each, nn.Linear)][-1]
    with torch.no_grad():
        module.train()(images)
        logits = module.eval()(images)
        factor = _LOGIT_SPREAD / logits.std(dim=0)
        head.weight *= factor.unsqueeze(1)
        head.bias.copy_((head.bias - logits.mean(dim=0)) * factor)
    return module


def write_labels(folder: Path, labels: Mapping[str, object] | None = None) -> Path:
    """Write ``index_to_name.json``, with `LABELS` unless others are given."""
    path = folder / "index_to_name.json"
    path.write_text(json.dumps(labels or dict(zip("012345", LABELS, strict=True))))
    return path


def archive(
    store: Path,
    name: str,
    weights: Path,
    *,
    model_file: Path | None = None,
    extra_files: tuple[Path, ...] = (),
    config: Mapping[str, object] | None = None,
    handler: str = "image_classifier",
) -> Path:
    """Make the archive ``NAME.mar`` with torch-model-archiver's command line."""
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name]
    command += ["--version", "1.0", "--handler", handler, "--serialized-file", str(weights)]
    command += ["--export-path", str(store), "--force"]
    if model_file is not None:
        command += ["--model-file", str(model_file)]
    if extra_files:
        command += ["--extra-files", ",".join(map(str, extra_files))]
    if config is not None:
        path = store / "model-config.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        command += ["--config-file", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return store / f"{name}.mar"


def rewritten(path: Path, target: Path, **changes: object) -> Path:
    """Copy an archive with changes in the manifest's entry ``model``; None removes a key."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "MAR-INF/MANIFEST.json":
                manifest = json.loads(content)
                model = manifest["model"] | changes
                manifest["model"] = {k: v for k, v in model.items() if v is not None}
                content = json.dumps(manifest).encode()
            copy.writestr(entry.filename, content)
    return target


def with_entries(path: Path, target: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    """Copy an archive and add entries."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            copy.writestr(entry.filename, source.read(entry))
        for entry, content in entries:
            copy.writestr(entry, content)
    return target
