"""Makes a spec, and the files beside it, from archives that stock TorchServe serves.

What an archive holds is copied. What it does not hold is known from the code of TorchServe's
image_classifier, or is a choice; both are listed for the reader. No code of an archive runs.
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

from ..handlers.archive.record import shown
from ..handlers.base.errors import ArchiveError, MemberError
from ..handlers.members.state_dict import read_state_dict
from ..handlers.spec import WeightsFormat, load_spec
from ..handlers.spec.labels_file import LabelsError, read_labels
from .stock_archive import HANDLER, LABELS, StockArchive, is_torchscript, open_stock_archive

SPEC_NAME = "ensemble.yaml"

_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")

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

_ALWAYS_UNKNOWN = (
    "preprocessing is that of TorchServe's image_classifier: shorter side to 256 pixels, middle "
    "224 x 224, ImageNet's mean and standard deviation. Whether the networks were trained with "
    "it, an archive does not say",
    "policies.default: mean is a choice; `ts-ensemble tune` compares all policies on your images",
    "stock answers hold the five best labels: send the option top_k=5 to get them here",
    "photographs are turned upright here, and gray or transparent images become RGB; stock "
    "TorchServe takes photographs as they lie, and fails on the others",
)


@dataclass(frozen=True)
class Adoption:
    """A spec that was made from archives.

    Attributes:
        spec: path of the spec.
        adopted: a sentence about each member.
        unknown: what no archive says, one sentence each.
    """

    spec: Path
    adopted: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass
class _Draft:
    """A spec that is being made.

    Attributes:
        folder: where its files are written.
        members: YAML of each member.
        modules: names of Python files that model files import.
        origins: name of a file, in lower case -> the archive that it is from.
        adopted: of `Adoption`.
        unknown: of `Adoption`.
    """

    folder: Path
    members: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    origins: dict[str, StockArchive] = field(default_factory=dict)
    adopted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def adopt(
    archives: Sequence[Path],
    output: Path,
    *,
    name: str,
    version: str = "1.0",
    labels: Path | None = None,
) -> Adoption:
    """Write a spec, weights, labels and architectures of the models in stock archives.

    Args:
        archives: ``.mar`` files with the handler image_classifier.
        output: a new folder, or an empty one.
        name: of the ensemble.
        version: of the ensemble.
        labels: a file in the format of index_to_name.json, for archives that have none.

    Raises:
        ArchiveError: an archive cannot be adopted, archives do not fit together, or the folder
            cannot be written.
        SpecError: name or version are not those of a spec.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArchiveError(f"{output}: exists and is not empty; name another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, so that the whole folder appears at once or not at all.
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ArchiveError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(open_stock_archive(path)) for path in archives]
            draft = _draft(opened, partial, labels)
        (partial / SPEC_NAME).write_text(_text(draft, opened, name, version), encoding="utf-8")
        load_spec(partial / SPEC_NAME)
        partial.chmod(0o755)
        partial.replace(output)
    except OSError as error:
        raise ArchiveError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Adoption(output / SPEC_NAME, tuple(draft.adopted), tuple(draft.unknown))


def _draft(opened: Sequence[StockArchive], folder: Path, labels: Path | None) -> _Draft:
    draft = _Draft(folder, unknown=list(_ALWAYS_UNKNOWN))
    (folder / "weights").mkdir()
    num_labels = _write_labels(opened, draft, labels)
    for name, archive in zip(_member_names(opened), opened, strict=True):
        _add_member(draft, name, archive, num_labels)
    return draft


def _member_names(opened: Sequence[StockArchive]) -> list[str]:
    """Return the models' names, with versions where archives have one name.

    Raises:
        ArchiveError: members would have equal or impossible names.
    """
    counts = Counter(archive.model_name for archive in opened)
    names = [
        f"{each.model_name}-{each.model_version}"
        if counts[each.model_name] > 1
        else each.model_name
        for each in opened
    ]
    first: dict[str, StockArchive] = {}
    for name, archive in zip(names, opened, strict=True):
        if not _MEMBER_NAME.fullmatch(name):
            raise ArchiveError(
                f"{archive.path}: its model is named {name[:100]!r}; a member's name has letters, "
                "digits, '_', '.' and '-': pack it again with another --model-name"
            )
        other = first.setdefault(name.casefold(), archive)
        if other is not archive:
            raise ArchiveError(
                f"{archive.path} and {other.path} both hold {name}: an ensemble has each model once"
            )
    return names


def _write_labels(opened: Sequence[StockArchive], draft: _Draft, given: Path | None) -> int:
    """Write the labels, which must be the same in all archives, and return how many there are.

    Raises:
        ArchiveError: there are none, or they differ.
    """
    sources: list[tuple[str, bytes]] = []
    if given is not None:
        try:
            sources.append((str(given), given.read_bytes()))
        except OSError as error:
            raise ArchiveError(f"{given}: cannot be read: {error.strerror}") from error
    sources += [(str(each.path), each.read(LABELS)) for each in opened if each.has_labels]
    if not sources:
        raise ArchiveError(
            f"no archive has {LABELS}, so TorchServe answers numbers; name the outputs in a file "
            'like {"0": "cat", "1": "dog"} and give it as --labels FILE'
        )
    first_source, content = sources[0]
    labels = _labels(first_source, content)
    for source, other in sources[1:]:
        _check_same(labels, first_source, _labels(source, other), source)
    without = [str(each.path) for each in opened if not each.has_labels]
    if without:
        draft.unknown.append(
            f"{', '.join(without)} has no {LABELS}: the labels of {first_source} are taken, in "
            "their order"
        )
    (draft.folder / LABELS).write_bytes(content)
    return len(labels)


def _labels(source: str, content: bytes) -> tuple[str, ...]:
    try:
        return read_labels(content, source=LABELS)
    except LabelsError as error:
        raise ArchiveError(f"{source}: {error}") from None


def _check_same(
    labels: Sequence[str], source: str, others: Sequence[str], other_source: str
) -> None:
    if len(labels) != len(others):
        raise ArchiveError(
            f"{source} has {len(labels)} labels and {other_source} has {len(others)}: the members "
            "of an ensemble have the same"
        )
    for index, (label, other) in enumerate(zip(labels, others, strict=True)):
        if label != other:
            raise ArchiveError(
                f"output {index} is {label!r} in {source} and {other!r} in {other_source}: the "
                "members of an ensemble have the same labels in the same order"
            )


def _add_member(draft: _Draft, name: str, archive: StockArchive, num_labels: int) -> None:
    lines = [f"  - name: {json.dumps(name)}"]
    if archive.model_file is None:
        weights = f"weights/{name}.pt"
        archive.extract(archive.weights, draft.folder / weights)
        if not is_torchscript(draft.folder / weights):
            raise ArchiveError(
                f"{archive.path}: {archive.weights} is no TorchScript archive, and without a model "
                "file TorchServe takes it for one; pack it again with --model-file"
            )
        kind = "TorchScript, which carries its own architecture"
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
    draft.adopted.append(f"{name}: {kind}; {num_labels} labels (from {archive.path})")
    if archive.compiled:
        draft.unknown.append(
            f"{name} was compiled by torch.compile on the server; here it runs as it was saved, "
            "or with OpenVINO where the build finds that faster"
        )
    if archive.unused:
        draft.unknown.append(
            f"not taken from {archive.path}: {', '.join(archive.unused[:10])}"
            f"{' and more' if len(archive.unused) > 10 else ''}"
        )


def _copy_code(draft: _Draft, name: str, archive: StockArchive) -> str:
    """Copy the model file and what it may import; returns the model file's new name."""
    assert archive.model_file is not None
    for module in archive.modules:
        _copy_module(draft, archive, module)
    code = archive.model_file
    if not _is_free(draft, archive, code):
        code = f"{name}_{archive.model_file}".replace("-", "_")
    _copy_module(draft, archive, archive.model_file, code)
    return code


def _is_free(draft: _Draft, archive: StockArchive, name: str) -> bool:
    """Whether no other archive has a file of this name with other contents."""
    other = draft.origins.get(name.casefold())
    return other is None or (draft.folder / name).read_bytes() == archive.read(name)


def _copy_module(
    draft: _Draft, archive: StockArchive, module: str, new_name: str | None = None
) -> None:
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


def _text(draft: _Draft, opened: Sequence[StockArchive], name: str, version: str) -> str:
    origins = "".join(f"#   {shown(each.path.name)}  sha256:{each.sha256}\n" for each in opened)
    unknown = "".join(f"#   - {shown(sentence)}.\n" for sentence in draft.unknown)
    members = "\n".join(draft.members)
    modules = f"extra_files: {json.dumps(draft.modules)}\n" if draft.modules else ""
    # In JSON, and so in YAML, whatever a name contains.
    return (
        f"# Made by `ts-ensemble adopt` from archives with TorchServe's {HANDLER}:\n{origins}"
        f"# What the archives do not say:\n{unknown}\n"
        f"name: {json.dumps(name)}\nversion: {json.dumps(version)}\ntask: classification\n"
        f"labels: {LABELS}\n{_PREPROCESSING}members:\n{members}\n"
        f"policies:\n  default: mean\n{modules}"
    )
