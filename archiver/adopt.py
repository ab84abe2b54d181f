"""Makes a spec, and the files beside it, from archives that stock TorchServe serves.

What an archive holds is copied. The rest is taken from the source of TorchServe's image_classifier,
or chosen here; notes in the spec list it for the reader. No code of an archive runs.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import ArchiveError, MemberError
from ..handlers.base.quoting import printable
from ..handlers.members.state_dict import read_state_dict
from ..handlers.spec import WeightsFormat, load_spec
from .stock_archive import HANDLER, LABELS, StockArchive, is_torchscript, open_stock_archive
from .stock_labels import common_labels

SPEC_NAME = "ensemble.yaml"

_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")
_MAX_UNUSED_FILES_SHOWN = 10

# Source: ImageClassifier.image_processing of TorchServe 0.12.0, which resizes PIL images.
_PREPROCESSING = """\
preprocessing:
  image_classifier:
    resize: 256
    crop: 224
    resize_library: pillow
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
"""

# Notes for every spec.
_GENERAL_NOTES = (
    "preprocessing is that of TorchServe's image_classifier: shorter side to 256 pixels, middle "
    "224 x 224, ImageNet's mean and standard deviation. Whether the networks were trained with "
    "it, an archive does not say",
    "policies.default: mean is a choice; `ts-ensemble tune` compares all policies on your images",
    "stock TorchServe answers the five best labels: send the option top_k=5 to get as many here",
    "photographs are turned upright here, and gray or transparent images become RGB; stock "
    "TorchServe does not turn photographs, and fails on gray or transparent images",
)


@dataclass(frozen=True)
class Adoption:
    """A spec that was made from archives.

    Attributes:
        spec: path of the spec.
        members: one sentence about each member: where it comes from and what it is.
        notes: one sentence about each thing that the archives do not say, and what was chosen.
    """

    spec: Path
    members: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Draft:
    """A spec that is being made.

    Attributes:
        folder: the folder for the spec's files.
        members: each member's entry in the spec, as YAML.
        modules: names of the Python files that model files may import.
        origins: name of each Python file in the folder, case folded -> the archive it is from.
        member_sentences: the sentences that become `Adoption.members`.
        notes: the sentences that become `Adoption.notes`.
    """

    folder: Path
    members: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    origins: dict[str, StockArchive] = field(default_factory=dict)
    member_sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def adopt(
    archives: Sequence[Path],
    output: Path,
    *,
    name: str,
    version: str = "1.0",
    labels: Path | None = None,
) -> Adoption:
    """Write a folder with the spec, weights, labels and architectures of models in stock archives.

    Args:
        archives: ``.mar`` files with the handler image_classifier. Each becomes one member.
        output: the folder; it must be empty or not exist.
        name: name of the ensemble.
        version: version of the ensemble.
        labels: a file in the format of index_to_name.json, for archives that have none.

    Raises:
        ArchiveError: an archive cannot be adopted, archives do not fit together, or the folder
            cannot be written.
        SpecError: a spec cannot have this name or version.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArchiveError(f"{output}: exists and is not empty; name another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # The folder is written beside the output and moved at the end, so that it appears as a
        # whole or not at all.
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ArchiveError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(open_stock_archive(path)) for path in archives]
            draft = _write_files(opened, partial, labels)
        (partial / SPEC_NAME).write_text(_spec_text(draft, opened, name, version), encoding="utf-8")
        load_spec(partial / SPEC_NAME)
        partial.chmod(0o755)
        partial.replace(output)
    except OSError as error:
        raise ArchiveError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Adoption(output / SPEC_NAME, tuple(draft.member_sentences), tuple(draft.notes))


def _write_files(opened: Sequence[StockArchive], folder: Path, labels_file: Path | None) -> _Draft:
    """Write every file of the folder but the spec, and collect the parts of the spec's text."""
    draft = _Draft(folder, notes=list(_GENERAL_NOTES))
    (folder / "weights").mkdir()
    labels = common_labels(opened, labels_file)
    (folder / LABELS).write_bytes(labels.content)
    without_labels = [str(each.path) for each in opened if not each.has_labels]
    if without_labels:
        draft.notes.append(
            f"{', '.join(without_labels)} has no {LABELS}: the labels of {labels.source} are "
            "taken, in their order"
        )
    for name, archive in zip(_member_names(opened), opened, strict=True):
        _add_member(draft, name, archive, len(labels.names))
    return draft


def _member_names(opened: Sequence[StockArchive]) -> list[str]:
    """Choose a name for each member: the model's name, with its version if names are equal.

    Raises:
        ArchiveError: two members would have equal names, or a spec cannot have a name.
    """
    counts = Counter(archive.model_name for archive in opened)
    names = [
        f"{each.model_name}-{each.model_version}"
        if counts[each.model_name] > 1
        else each.model_name
        for each in opened
    ]
    archive_by_name: dict[str, StockArchive] = {}
    for name, archive in zip(names, opened, strict=True):
        if not _MEMBER_NAME.fullmatch(name):
            raise ArchiveError(
                f"{archive.path}: its model is named {name[:100]!r}; a member's name has letters, "
                "digits, '_', '.' and '-': pack it again with another --model-name"
            )
        other = archive_by_name.setdefault(name.casefold(), archive)
        if other is not archive:
            raise ArchiveError(
                f"{archive.path} and {other.path} both hold {name}: an ensemble has each model once"
            )
    return names


def _add_member(draft: _Draft, name: str, archive: StockArchive, num_labels: int) -> None:
    """Copy one model's weights and code into the draft's folder, and write its entry of the spec.

    Raises:
        ArchiveError: the weights are neither TorchScript nor a state dict, or the folder has
            different Python files of the same names.
    """
    lines = [f"  - name: {json.dumps(name)}"]
    if archive.model_file is None:
        weights = f"weights/{name}.pt"
        archive.extract(archive.weights, draft.folder / weights)
        if not is_torchscript(draft.folder / weights):
            raise ArchiveError(
                f"{archive.path}: {archive.weights} is no TorchScript archive, and without a model "
                "file TorchServe loads weights as TorchScript; pack it again with --model-file"
            )
        kind = "TorchScript, which contains its architecture"
    else:
        weights = f"weights/{name}.pth"
        archive.extract(archive.weights, draft.folder / weights)
        try:
            read_state_dict(WeightsFormat.STATE_DICT, draft.folder / weights)
        except MemberError as error:
            raise ArchiveError(f"{archive.path}: {archive.weights}: {error}") from error
        code = _copy_code(draft, name, archive)
        lines.append(f"    architecture: {json.dumps(f'{code}:{archive.model_class}')}")
        kind = f"state dict for {code}:{archive.model_class}"
    lines.append(f"    weights: {json.dumps(weights)}")
    draft.members.append("\n".join(lines))
    draft.member_sentences.append(f"{name}: {kind}; {num_labels} labels (from {archive.path})")
    if archive.compiled:
        draft.notes.append(
            f"{name} was compiled by torch.compile on the server; here it runs as it was saved, "
            "or with OpenVINO where the build finds that faster"
        )
    if archive.unused:
        listed = ", ".join(archive.unused[:_MAX_UNUSED_FILES_SHOWN])
        more = " and more" if len(archive.unused) > _MAX_UNUSED_FILES_SHOWN else ""
        draft.notes.append(f"these files of {archive.path} are not used: {listed}{more}")


def _copy_code(draft: _Draft, name: str, archive: StockArchive) -> str:
    """Copy a model file and the modules that it may import; return the model file's new name."""
    assert archive.model_file is not None
    for module in archive.modules:
        _copy_module(draft, archive, module)
    code = archive.model_file
    if not _is_name_free(draft, archive, code):
        code = f"{name}_{archive.model_file}".replace("-", "_")
    _copy_module(draft, archive, archive.model_file, code)
    return code


def _is_name_free(draft: _Draft, archive: StockArchive, name: str) -> bool:
    """Return whether the folder has no file of this name with other contents."""
    other = draft.origins.get(name.casefold())
    return other is None or (draft.folder / name).read_bytes() == archive.read(name)


def _copy_module(
    draft: _Draft, archive: StockArchive, module: str, new_name: str | None = None
) -> None:
    """Copy a Python file from an archive into the draft's folder.

    Args:
        draft: the spec that is being made.
        archive: the archive with the file.
        module: name of the file in the archive.
        new_name: name of the copy of a model file. None for a module that a model file may import,
            which keeps its name and becomes one of the spec's extra_files.

    Raises:
        ArchiveError: the folder has a file of this name with other contents.
    """
    target = new_name or module
    other = draft.origins.get(target.casefold())
    path = draft.folder / target
    if other is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        archive.extract(module, path)
        draft.origins[target.casefold()] = archive
    elif not path.is_file() or path.read_bytes() != archive.read(module):
        raise ArchiveError(
            f"{archive.path} and {other.path} have different files {target}, which their model "
            "files may import by this name: rename one, with its imports, and pack again"
        )
    if new_name is None and module not in draft.modules:
        draft.modules.append(module)


def _spec_text(draft: _Draft, opened: Sequence[StockArchive], name: str, version: str) -> str:
    """Return the text of the spec, with the archives and the notes as comments at its beginning."""
    origins = "".join(f"#   {printable(each.path.name)}  sha256:{each.sha256}\n" for each in opened)
    notes = "".join(f"#   - {printable(sentence)}.\n" for sentence in draft.notes)
    members = "\n".join(draft.members)
    modules = f"extra_files: {json.dumps(draft.modules)}\n" if draft.modules else ""
    # Names are written as JSON, which is valid YAML whatever a name contains.
    return (
        f"# Made by `ts-ensemble adopt` from archives with TorchServe's {HANDLER}:\n{origins}"
        f"# What the archives do not say:\n{notes}\n"
        f"name: {json.dumps(name)}\nversion: {json.dumps(version)}\ntask: classification\n"
        f"labels: {LABELS}\n{_PREPROCESSING}members:\n{members}\n"
        f"policies:\n  default: mean\n{modules}"
    )
