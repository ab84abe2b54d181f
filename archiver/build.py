"""Build a model archive: the members, the handler and the settings in one `.mar`.

The archive is a zip that stock TorchServe loads. Its bytes depend on its contents alone: entries in
sorted order, one fixed time, no compression.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import yaml
from model_archiver.manifest_components.manifest import Manifest, RuntimeType
from model_archiver.manifest_components.model import Model
from packaging.requirements import Requirement

from ..handlers.archive.mar_file import entry_of
from ..handlers.archive.record import ArchiveRecord, sha256
from ..handlers.base.archive_layout import (
    ENSEMBLE,
    ENTRY,
    MANIFEST,
    MODEL_CONFIG,
    RECORD,
    REQUIREMENTS,
    SPEC,
)
from ..handlers.base.errors import ArchiveError
from ..handlers.deployment import load_service
from ..handlers.spec import EnsembleSpec, WeightsFormat, load_spec
from .labels_in_spec import text_with_labels

logger = logging.getLogger(__name__)

HANDLERS = Path(__file__).parent.parent / "handlers"
HANDLER_NEEDS = ("numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch", "torchvision")
BUILT_WITH = ("torchserve-ensemble", "torch", "torchvision", "torch-model-archiver")

# Enough to tell whether a precision changes answers; a folder may hold millions.
_MAX_SAMPLES = 64

_FIXED_DATE = "01/01/1980 00:00:00"


def build_archive(
    spec_path: Path,
    output: Path,
    *,
    check: bool = True,
    samples: Path | None = None,
    report: Callable[[str], None] = logger.info,
) -> Path:
    """Build ``NAME-VERSION.mar`` from a spec.

    Args:
        spec_path: the ensemble's YAML file; the files that it names lie in its folder.
        output: the folder for the archive, made if missing.
        check: load every member and run it once before anything is written.
        samples: a folder of images as the ensemble will get them, on which compiled members
            (``runtime.compile``) must answer as the saved ones do.
        report: called with a sentence about each member that was to be compiled.

    Returns:
        The archive's path.

    Raises:
        SpecError: a mistake in the spec.
        MemberError: a member cannot be loaded or does not fit the spec.
        ArchiveError: the archive cannot be written, or members cannot be compiled here.
    """
    spec = load_spec(spec_path)
    if check:
        load_service(spec, spec_path.parent)
    with _compiled(spec, spec_path.parent, samples, report) as compiled:
        contents = _contents(spec, spec_path)
        contents |= {f"{ENSEMBLE}/{name}": path for name, path in compiled.items()}
        return _write_archive(spec, contents, output)


@contextmanager
def _compiled(
    spec: EnsembleSpec, folder: Path, samples: Path | None, report: Callable[[str], None]
) -> Iterator[dict[str, Path]]:
    if not spec.runtime.compile:
        yield {}
        return
    # Imported here: torch's compiler takes seconds to import.
    from .compilation import compiled_members

    images = [] if samples is None else sample_files(samples, "--samples")
    with compiled_members(spec, folder, samples=images, report=report) as files:
        yield files


def sample_files(folder: Path, option: str) -> list[Path]:
    """The first files below a folder, at most `_MAX_SAMPLES`.

    Args:
        folder: with images like those that will be sent.
        option: of the command line that names it, for the message.

    Raises:
        ArchiveError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not found:
        raise ArchiveError(f"{option} {folder}: no folder with images in it")
    return found[:_MAX_SAMPLES]


def _write_archive(spec: EnsembleSpec, contents: dict[str, bytes | Path], output: Path) -> Path:
    record = ArchiveRecord(
        files={
            name: sha256(content) if isinstance(content, Path) else sha256_of(content)
            for name, content in contents.items()
        },
        built_with={package: metadata.version(package) for package in BUILT_WITH},
    )
    contents[RECORD] = record.to_json().encode()
    target = output / f"{spec.name}-{spec.version}.mar"
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_entries(contents, target)
    except OSError as error:
        raise ArchiveError(f"{target}: cannot be written: {error}") from error
    return target


def manifest(spec: EnsembleSpec) -> str:
    """TorchServe's manifest, made by torch-model-archiver's own classes but for the date."""
    model = Model(
        model_name=spec.name,
        serialized_file=None,
        model_version=spec.version,
        handler=ENTRY,
        config_file=MODEL_CONFIG,
        requirements_file=REQUIREMENTS,
    )
    made = Manifest(RuntimeType.PYTHON.value, model)
    content = json.loads(str(made))
    content["createdOn"] = _FIXED_DATE
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def model_config(spec: EnsembleSpec) -> str:
    """TorchServe's settings of the model.

    Every key is written: TorchServe's defaults for a missing one would override what the register
    call and config.properties say, and it ignores minWorkers without maxWorkers.
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


def requirements(spec: EnsembleSpec) -> str:
    """What the server's Python needs beside TorchServe, with this project's own version ranges.

    For people. Where install_py_dep_per_model is on, TorchServe installs them into the archive's
    folder, and the worker then refuses to load: the record lists none of that.
    """
    needed = HANDLER_NEEDS + (
        ("onnxruntime",)
        if any(member.weights_format is WeightsFormat.ONNX for member in spec.members)
        else ()
    )
    declared = [Requirement(line) for line in metadata.requires("torchserve-ensemble") or ()]
    lines = {f"{need.name}{need.specifier}" for need in declared if need.name.lower() in needed}
    return "\n".join(sorted(lines)) + "\n"


def _contents(spec: EnsembleSpec, spec_path: Path) -> dict[str, bytes | Path]:
    """Path in the archive -> contents, or the file that holds them."""
    contents: dict[str, bytes | Path] = {
        SPEC: text_with_labels(spec_path, spec),
        ENTRY: HANDLERS / "entry.py",
        MODEL_CONFIG: model_config(spec).encode(),
        REQUIREMENTS: requirements(spec).encode(),
        MANIFEST: manifest(spec).encode(),
    }
    contents |= {f"{ENSEMBLE}/{file}": spec_path.parent / file for file in spec.files()}
    contents |= dict(_handler_files())
    return contents


def _handler_files() -> Iterator[tuple[str, Path]]:
    for path in HANDLERS.rglob("*.py"):
        yield f"handlers/{path.relative_to(HANDLERS).as_posix()}", path


def sha256_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_entries(contents: Mapping[str, bytes | Path], target: Path) -> None:
    """Write an archive: beside the target, then moved, so that no reader sees half of one."""
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                content = contents[name]
                data = content.read_bytes() if isinstance(content, Path) else content
                archive.writestr(entry_of(name), data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
