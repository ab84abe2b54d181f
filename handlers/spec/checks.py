"""Checks that the parts of a spec fit together, which types alone cannot express."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath

from ..base.archive_layout import (
    COMPILED,
    ENSEMBLE,
    SELF_TEST,
    SPEC,
    name_problem,
    names_that_collide,
)
from ..base.errors import SpecError
from ..base.tasks import Task
from .ensemble import EnsembleSpec
from .member import Member, Output, WeightsFormat
from .preprocessing import Interpolation, Preprocessing, ResizeLibrary
from .rollout_checks import check_rollout
from .settings import Engine, Precision
from .strict_yaml import Place, Problem

_MAX_SUGGESTED_FILES = 1000
"""A missing file's name is compared with at most this many files of its folder."""

_BESIDE_WEIGHTS = {"weights", "decode", "example", "window", "resize_library", "scaled_jpeg"}
_BESIDE_FUNCTION = {"function", "shape", "decode", "example", "window"}
"""Keys of a preprocessing that may be set beside `weights`, and beside `function`."""

# An archive puts the user's files into the same folder as the spec, the self-test and the compiled
# executables, so no file of the user may have one of these names.
_RESERVED_NAMES = {path.rpartition("/")[2] for path in (SPEC, SELF_TEST)}
_COMPILED_FOLDER = COMPILED.rpartition("/")[2]


def check_spec(spec: EnsembleSpec, folder: Path | None) -> Iterator[Problem]:
    """Find every place where the parts of a spec do not fit together.

    Args:
        spec: the spec after parsing, when each value has the right type.
        folder: the folder in which every file named in the spec must exist; None to leave that
            unchecked.
    """
    yield from _check_labels(spec)
    yield from _check_members(spec)
    yield from _check_architectures(spec, folder)
    yield from _check_runtime(spec)
    yield from check_rollout(spec)
    yield from _check_files(spec, folder)


def _check_labels(spec: EnsembleSpec) -> list[Problem]:
    """Check that the labels suit the task, and that thresholds name labels that have a score."""
    problems = []
    repeated = sorted(label for label, count in Counter(spec.labels).items() if count > 1)
    if repeated:
        problems.append(Problem(("labels",), f"labels must differ; given twice: {repeated[:10]}"))
    if spec.task is Task.PRESENCE and len(spec.labels) != 2:
        problems.append(
            Problem(("labels",), "task presence takes exactly two labels: [absent, present]")
        )
    if spec.task is Task.CLASSIFICATION and len(spec.labels) < 2:
        problems.append(Problem(("labels",), "task classification takes at least two labels"))
    thresholds: list[tuple[Place, object]] = [(("threshold",), spec.threshold)]
    thresholds += [
        (("members", index, "threshold"), member.threshold)
        for index, member in enumerate(spec.members)
    ]
    for place, by_label in thresholds:
        if isinstance(by_label, Mapping):
            problems += [
                Problem((*place, label), "not a label that is scored", label, spec.score_labels)
                for label in by_label
                if label not in spec.score_labels
            ]
    return problems


def _check_runtime(spec: EnsembleSpec) -> list[Problem]:
    """Check that the engine can compute in the precision."""
    if spec.runtime.precision is Precision.INT8 and spec.runtime.engine not in (
        Engine.AUTO,
        Engine.OPENVINO,
    ):
        return [Problem(("runtime", "precision"), "int8 needs runtime.engine: auto or openvino")]
    return []


def _check_members(spec: EnsembleSpec) -> list[Problem]:
    """Check the members' names, formats, preprocessing and voting weights, and their number."""
    problems = []
    names: set[str] = set()
    for index, member in enumerate(spec.members):
        place: Place = ("members", index)
        if member.name in names:
            problems.append(Problem((*place, "name"), f"two members are named '{member.name}'"))
        names.add(member.name)
        data_sets = member.provenance.data_sets
        if len(set(data_sets)) < len(data_sets):
            problem = f"a data set is named twice: {', '.join(data_sets)[:200]}"
            problems.append(Problem((*place, "provenance", "data_sets"), problem))
        problems += _check_format(spec, member, place)
        choice = member.preprocessing
        if choice is None and len(spec.preprocessing) != 1:
            problems.append(
                Problem(
                    place,
                    "preprocessing is missing: the member must name one, unless the ensemble's "
                    "preprocessing has exactly one entry",
                )
            )
        elif isinstance(choice, str) and choice not in spec.preprocessing and "." not in choice:
            problems.append(
                Problem(
                    (*place, "preprocessing"),
                    f"'{choice}' is neither in the top-level preprocessing nor torchvision "
                    "weights such as ResNet18_Weights.DEFAULT",
                    choice,
                    tuple(spec.preprocessing),
                )
            )
        elif isinstance(choice, Preprocessing):
            problems += _check_preprocessing(choice, (*place, "preprocessing"))
    for name, preprocessing in spec.preprocessing.items():
        problems += _check_preprocessing(preprocessing, ("preprocessing", name))
    if spec.failures.min_members > len(spec.members):
        problems.append(
            Problem(
                ("failures", "min_members"), f"the ensemble has only {len(spec.members)} members"
            )
        )
    if all(member.voting_weight == 0 for member in spec.members):
        problems.append(Problem(("members",), "at least one voting_weight must be above 0"))
    return problems


def _check_format(spec: EnsembleSpec, member: Member, place: Place) -> list[Problem]:
    """Check that a member's format, architecture, output and temperature fit together."""
    problems = []
    try:
        needs_architecture = member.weights_format in {
            WeightsFormat.SAFETENSORS,
            WeightsFormat.STATE_DICT,
        }
    except SpecError as error:
        return [Problem((*place, "weights"), str(error).partition(": ")[2])]
    if needs_architecture and member.architecture is None:
        problems.append(
            Problem(
                place,
                f"architecture is missing: {member.weights_format} weights need one "
                "(torchvision.models.NAME or FILE.py:CLASS)",
            )
        )
    if not needs_architecture and (member.architecture is not None or member.arguments):
        problems.append(
            Problem(
                (*place, "architecture" if member.architecture is not None else "arguments"),
                f"{member.weights_format} files carry their own architecture: remove the key, or "
                "add architecture if the file holds a state dict",
            )
        )
    regression = spec.task is Task.REGRESSION
    if member.output is not None and (member.output is Output.VALUES) != regression:
        suitable = "values" if regression else "logits or probabilities"
        problems.append(
            Problem((*place, "output"), f"task {spec.task} takes members that give {suitable}")
        )
    if member.temperature != 1 and spec.output_of(member) is not Output.LOGITS:
        problems.append(
            Problem((*place, "temperature"), "only logits can be divided by a temperature")
        )
    return problems


def _check_architectures(spec: EnsembleSpec, folder: Path | None) -> Iterator[Problem]:
    for index, member in enumerate(spec.members):
        place: Place = ("members", index)
        text = member.architecture
        if text is not None and member.architecture_file is None:
            if not text.startswith("torchvision.models."):
                yield Problem(
                    (*place, "architecture"),
                    f"'{text}' is neither torchvision.models.NAME nor FILE.py:CLASS",
                )
        elif (
            text is None
            and folder is not None
            and _is_read_as_torchscript(member)
            and _holds_state_dict(folder / member.weights)
        ):
            yield Problem(
                place,
                f"architecture is missing: {member.weights} holds a state dict, which needs one "
                "(torchvision.models.NAME or FILE.py:CLASS)",
            )


def _is_read_as_torchscript(member: Member) -> bool:
    try:
        return member.weights_format is WeightsFormat.TORCHSCRIPT
    except SpecError:
        return False


def _holds_state_dict(path: Path) -> bool:
    """Whether a file was written by `torch.save`, and not by `torch.jit.save`.

    Both write a zip with ``data.pkl``; only a TorchScript archive also has ``constants.pkl``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            endings = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return "data.pkl" in endings and "constants.pkl" not in endings


def _check_resize(preprocessing: Preprocessing, place: Place) -> Iterator[Problem]:
    """Check that `resize` and its library can do what the other keys ask for."""
    if preprocessing.letterbox is not None and not isinstance(preprocessing.resize, tuple):
        yield Problem((*place, "letterbox"), "needs resize: [height, width], which it fills")
    if preprocessing.resize_library is not ResizeLibrary.PILLOW:
        return
    if preprocessing.interpolation is Interpolation.NEAREST_EXACT:
        problem = "Pillow has nearest, bilinear and bicubic (resize_library: pillow)"
        yield Problem((*place, "interpolation"), problem)
    if not preprocessing.antialias:
        problem = "Pillow always filters when it shrinks (resize_library: pillow): remove the key"
        yield Problem((*place, "antialias"), problem)


def _changed_keys(preprocessing: Preprocessing) -> set[str]:
    """Return the keys whose values are not the default ones."""
    default = Preprocessing()
    names = {field.name for field in dataclasses.fields(Preprocessing)}
    return {name for name in names if getattr(preprocessing, name) != getattr(default, name)}


def _check_decoding(preprocessing: Preprocessing, place: Place) -> Iterator[Problem]:
    if preprocessing.decode is not None and preprocessing.example is None:
        problem = "needs example: the path of a file that it decodes, on which it is tried"
        yield Problem((*place, "decode"), problem)
    if preprocessing.decode is None and preprocessing.example is not None:
        yield Problem((*place, "example"), "belongs to decode (FILE.py:FUNCTION)")
    if preprocessing.scaled_jpeg and preprocessing.weights is None and preprocessing.resize is None:
        yield Problem((*place, "scaled_jpeg"), "needs resize, which says how large is enough")
    if preprocessing.scaled_jpeg and preprocessing.decode is not None:
        yield Problem((*place, "scaled_jpeg"), "has no effect beside decode: remove it")


def _check_preprocessing(preprocessing: Preprocessing, place: Place) -> list[Problem]:
    problems = list(_check_decoding(preprocessing, place))
    keys = _changed_keys(preprocessing)
    if preprocessing.weights is not None:
        if keys - _BESIDE_WEIGHTS:
            problem = (
                "only decode, example, window, resize_library and scaled_jpeg may stand "
                "beside it: the weights set all of them"
            )
            problems.append(Problem((*place, "weights"), problem))
        return problems
    if preprocessing.function is not None or preprocessing.shape is not None:
        if keys - _BESIDE_FUNCTION:
            problem = (
                "no other key but shape, decode, example and window may stand beside it: the "
                "function does the rest"
            )
            problems.append(Problem((*place, "function"), problem))
        elif preprocessing.function is None:
            problems.append(Problem((*place, "shape"), "belongs to function (FILE.py:FUNCTION)"))
        elif preprocessing.shape is None:
            problem = "needs shape: [channels, height, width] of what it returns"
            problems.append(Problem((*place, "function"), problem))
        return problems
    problems += _check_resize(preprocessing, place)
    if preprocessing.size is None:
        problems.append(
            Problem(
                place,
                "images of all sizes must become inputs of one size: set crop, or "
                "resize: [height, width]",
            )
        )
    by_name = preprocessing.normalize is not None
    if by_name and (preprocessing.mean is not None or preprocessing.std is not None):
        problem = "sets mean and std: remove these two keys, or this one"
        problems.append(Problem((*place, "normalize"), problem))
    if by_name and (preprocessing.channels != 3 or preprocessing.value_range != (0.0, 1.0)):
        problem = "is for color: rgb and value_range: [0, 1]; write mean and std out instead"
        problems.append(Problem((*place, "normalize"), problem))
    for key in ("mean", "std"):
        values = getattr(preprocessing, key)
        if values is not None and len(values) not in (1, preprocessing.channels):
            problems.append(
                Problem(
                    (*place, key),
                    f"takes {preprocessing.channels} numbers, one for each channel, or one for all",
                )
            )
    if math.isclose(*preprocessing.value_range):
        problems.append(
            Problem((*place, "value_range"), "black and white must become different numbers")
        )
    return problems


def _check_files(spec: EnsembleSpec, folder: Path | None) -> Iterator[Problem]:
    """Check that an archive can contain the named files, and that they exist in the folder."""
    named_files: list[tuple[Place, str]] = []
    for index, member in enumerate(spec.members):
        named_files.append((("members", index, "weights"), member.weights))
        if member.architecture_file is not None:
            named_files.append((("members", index, "architecture"), member.architecture_file))
        if member.postprocess_file is not None:
            named_files.append((("members", index, "postprocess"), member.postprocess_file))
        if isinstance(member.preprocessing, Preprocessing):
            named_files += [
                (("members", index, "preprocessing", key), file)
                for key, file in member.preprocessing.files.items()
            ]
    for name, preprocessing in spec.preprocessing.items():
        named_files += [
            (("preprocessing", name, key), file) for key, file in preprocessing.files.items()
        ]
    named_files += [(("policies", "fitted", name), f) for name, f in spec.policies.fitted.items()]
    named_files += [(("extra_files", index), file) for index, file in enumerate(spec.extra_files)]
    for place, file in named_files:
        reason = _misplacement(file)
        if reason is not None:
            yield Problem(place, f"{file[:200]!r} {reason}")
        elif folder is not None:
            yield from _check_file(folder, file, place)
    for first, second in names_that_collide(spec.files()):
        yield Problem(
            (), f"some file systems take the files {first} and {second} for one: rename one"
        )


def _misplacement(file: str) -> str | None:
    """Return why an archive cannot contain a file under this path; None if it can."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        return "must lie in the spec's folder, written with '/'"
    if path.parts[:1] == (_COMPILED_FOLDER,) or path.as_posix() in _RESERVED_NAMES:
        return "is a name that the archive itself needs: rename the file"
    reason = name_problem(f"{ENSEMBLE}/{path.as_posix()}")
    return f"cannot go into an archive: {reason}" if reason is not None else None


def _check_file(folder: Path, file: str, place: Place) -> Iterator[Problem]:
    """Check that a file exists in the spec's folder, and is not a link to a place outside."""
    path = folder / file
    if not path.is_file():
        others = tuple(
            other.relative_to(folder).as_posix()
            for other in islice(path.parent.glob("*"), _MAX_SUGGESTED_FILES)
            if other.is_file()
        )
        yield Problem(place, f"no such file: {path}", file, others)
    elif not path.resolve().is_relative_to(folder.resolve()):
        yield Problem(
            place,
            f"{file} is, or lies behind, a link to {path.resolve()}, outside the spec's folder: "
            "copy the file there",
        )
