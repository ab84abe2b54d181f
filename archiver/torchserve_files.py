"""Writes the files of an archive that TorchServe itself reads: manifest, settings, requirements."""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib import metadata

import yaml
from model_archiver.manifest_components.manifest import Manifest, RuntimeType
from model_archiver.manifest_components.model import Model
from packaging.requirements import Requirement

from ..handlers.base.archive_layout import ENTRY, MODEL_CONFIG, REQUIREMENTS
from ..handlers.members.openvino_model import SUFFIX as OPENVINO_SUFFIX
from ..handlers.spec import EnsembleSpec, WeightsFormat

_HANDLER_NEEDS = (
    "numpy",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "simplejpeg",
    "torch",
    "torchvision",
)
_FIXED_DATE = "01/01/1980 00:00:00"


def manifest(spec: EnsembleSpec) -> str:
    """Return TorchServe's manifest of the archive, as JSON.

    The classes of torch-model-archiver make it. Only the date is replaced by a fixed one, so that
    equal contents give an archive of equal bytes.
    """
    model = Model(
        model_name=spec.name,
        serialized_file=None,
        model_version=spec.version,
        handler=ENTRY,
        config_file=MODEL_CONFIG,
        requirements_file=REQUIREMENTS,
    )
    content = json.loads(str(Manifest(RuntimeType.PYTHON.value, model)))
    content["createdOn"] = _FIXED_DATE
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def model_config(spec: EnsembleSpec) -> str:
    """Return TorchServe's settings of the model, as YAML.

    Every key is written. If one is missing, TorchServe's default overrides what the registration
    and config.properties say. It ignores minWorkers without maxWorkers.
    """
    serving = spec.serving
    return yaml.safe_dump(
        {
            "minWorkers": serving.workers,
            "maxWorkers": serving.workers,
            "batchSize": serving.batch_size,
            "maxBatchDelay": serving.max_batch_delay_ms,
            "responseTimeout": serving.response_timeout_s,
            "startupTimeout": serving.startup_timeout_s,
        },
        sort_keys=False,
    )


def requirements(spec: EnsembleSpec, compiled: Collection[str] = ()) -> str:
    """Return the packages that the server's Python needs beside TorchServe, as requirements.txt.

    The version ranges are those that this project declares for itself.

    The list is for the people who install the packages once for the server. TorchServe's
    install_py_dep_per_model would install them into the archive's folder instead, and the worker
    would refuse to load, because the archive's record does not list the installed files.

    Args:
        spec: the ensemble.
        compiled: paths of the executables' files.
    """
    needed = set(_HANDLER_NEEDS)
    if any(member.weights_format is WeightsFormat.ONNX for member in spec.members):
        needed.add("onnxruntime")
    if any(file.endswith(OPENVINO_SUFFIX) for file in compiled):
        needed.add("openvino")
    declared = [Requirement(line) for line in metadata.requires("torchserve-ensemble") or ()]
    lines = {f"{each.name}{each.specifier}" for each in declared if each.name.lower() in needed}
    return "\n".join(sorted(lines)) + "\n"
