"""Reads the archive of one model, as torch-model-archiver writes it for stock TorchServe.

Such an archive may come from anywhere. It is checked before anything of it is written, and nothing
of it runs: its Python code is parsed for names, and weights are unpickled as tensors alone.
"""

from __future__ import annotations

import ast
import json
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..handlers.archive.mar_file import check_end
from ..handlers.archive.record import MAX_TEXT_BYTES, sha256, shown
from ..handlers.base.archive_layout import MANIFEST, name_problem, names_that_collide
from ..handlers.base.errors import ArchiveError
from ..handlers.spec.bounded_yaml import BoundedLoader

LABELS = "index_to_name.json"
"""Name of the file with labels that TorchServe's own handlers read."""

HANDLER = "image_classifier"
"""The only handler of which it is known what it does to images and to outputs."""

_BYTE_CODE = name_problem("module.pyc")
_MAX_PROBLEMS = 5
_BLOCK_BYTES = 1024**2
_MAX_CODE_BYTES = 1_000_000
# Weights hardly compress; networks whose weights are all alike, as in trials, are small.
_MAX_COMPRESSION = 20
_FREE_BYTES = 64 * 1024**2
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# A TorchScript archive is a zip too, and has this file; one of torch.save has not.
_TORCHSCRIPT_FILE = "constants.pkl"


@dataclass(frozen=True)
class StockArchive:
    """One opened archive.

    Attributes:
        path: the archive.
        sha256: of the archive, in hexadecimal.
        model_name: the manifest's name of the model.
        model_version: the manifest's version of the model.
        weights: name of the file with the weights.
        model_file: name of the Python file that defines the network; None for TorchScript.
        model_class: name of the only class in `model_file`; None for TorchScript.
        compiled: whether TorchServe compiles the network with torch.compile when it loads it.
        modules: names of the other Python files, which `model_file` may import.
        unused: names of all files that an ensemble has no use for.
    """

    path: Path
    sha256: str
    model_name: str
    model_version: str
    weights: str
    model_file: str | None
    model_class: str | None
    compiled: bool
    modules: tuple[str, ...]
    unused: tuple[str, ...]
    _opened: zipfile.ZipFile

    @property
    def has_labels(self) -> bool:
        """Whether the archive contains `LABELS`."""
        return LABELS in self._opened.namelist()

    def read(self, name: str) -> bytes:
        """Return the contents of a small file.

        Raises:
            ArchiveError: the file is damaged, or too large to be text.
        """
        return _read(self._opened, name, self.path, MAX_TEXT_BYTES)

    def extract(self, name: str, target: Path) -> None:
        """Copy one file to a path that does not exist yet.

        Raises:
            ArchiveError: the file is damaged.
        """
        try:
            with self._opened.open(name) as source, target.open("xb") as file:
                while block := source.read(_BLOCK_BYTES):
                    file.write(block)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error


_DAMAGE = (ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile)
"""What zipfile and zlib raise if an archive is damaged, beside OSError."""


@contextmanager
def open_stock_archive(path: Path) -> Iterator[StockArchive]:
    """Open the archive of one model for stock TorchServe, checked.

    Args:
        path: a ``.mar`` file.

    Raises:
        ArchiveError: it is hostile or damaged, has another handler than `HANDLER`, or could not be
            served by stock TorchServe either.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such archive")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        check_end(file, str(path))
        try:
            opened = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        with opened:
            problems = sorted(_problems_of_entries(opened.infolist(), path.stat().st_size))
            if problems:
                more = f"; and {len(problems) - _MAX_PROBLEMS} more" * (
                    len(problems) > _MAX_PROBLEMS
                )
                raise ArchiveError(
                    f"{path}: refused, torch-model-archiver writes no such archive: "
                    f"{'; '.join(problems[:_MAX_PROBLEMS])}{more}"
                )
            yield _described(path, opened)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; it is not loaded."""
    try:
        with path.open("rb") as file:
            check_end(file, str(path))
            with zipfile.ZipFile(file) as opened:
                names = opened.namelist()
    except (OSError, ArchiveError, *_DAMAGE):
        return False
    return any(name.rpartition("/")[2] == _TORCHSCRIPT_FILE for name in names)


def _problems_of_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    """Find what makes an archive dangerous to extract.

    Args:
        entries: of the zip's directory.
        size: of the archive, in bytes.
    """
    names = Counter(entry.filename for entry in entries)
    for name, count in names.items():
        if count > 1:
            yield f"{shown(name)} is in it {count} times"
    for first, second in names_that_collide(names):
        yield f"{shown(first)} and {shown(second)} are one name to some file systems"
    for entry in entries:
        name = shown(entry.filename)
        reason = name_problem(entry.orig_filename.removesuffix("/"))
        # Byte code is harmless here, since it is not copied.
        if reason not in (None, _BYTE_CODE):
            yield f"the name {entry.orig_filename[:100]!r} cannot be: {reason}"
        if entry.flag_bits & 1:
            yield f"{name} is encrypted"
        if entry.compress_type not in _COMPRESSIONS:
            yield f"{name} is compressed in another way than by deflate"
        mode = entry.external_attr >> 16
        allowed = stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
        if stat.S_IFMT(mode) not in (0, allowed):
            yield f"{name} is a link or no regular file"
    unpacked, limit = (
        sum(entry.file_size for entry in entries),
        _FREE_BYTES + _MAX_COMPRESSION * size,
    )
    if unpacked > limit:
        yield f"its {size} bytes unpack to {unpacked}, and may to {limit}: weights hardly compress"


def _described(path: Path, opened: zipfile.ZipFile) -> StockArchive:
    model = _model_of_manifest(path, opened)
    handler = model.get("handler")
    if handler != HANDLER:
        raise ArchiveError(
            f"{path}: its handler is {shown(str(handler))[:100]!r}, and only TorchServe's own "
            f"{HANDLER} can be adopted: what other code does before and after the network cannot "
            "be known. Write a spec instead (docs/first-hour.md)"
        )
    weights, model_file = model.get("serializedFile"), model.get("modelFile")
    names = {entry.filename for entry in opened.infolist() if not entry.is_dir()}
    for key, name in (("serializedFile", weights), ("modelFile", model_file)):
        if name and name not in names:
            raise ArchiveError(f"{path}: its manifest names the {key} {name!r}, which is missing")
    if model_file and ("/" in model_file or not model_file.endswith(".py")):
        raise ArchiveError(
            f"{path}: its model file {shown(model_file)!r} is no Python file at the root"
        )
    if not weights:
        raise ArchiveError(f"{path}: it has no weights (serializedFile), which an ensemble needs")
    if not model_file and not weights.endswith(".pt"):
        raise ArchiveError(
            f"{path}: without a model file stock {HANDLER} serves TorchScript in a .pt file alone, "
            f"not {weights}; pack it again with --model-file, or write a spec (docs/first-hour.md)"
        )
    modules = {name for name in names if name.endswith(".py") and model_file and name != model_file}
    used = {weights, model_file, MANIFEST, LABELS, model.get("configFile"), *modules}
    return StockArchive(
        path=path,
        sha256=sha256(path),
        model_name=model["modelName"],
        model_version=model.get("modelVersion") or "",
        weights=weights,
        model_file=model_file or None,
        model_class=_only_class(path, opened, model_file) if model_file else None,
        compiled=_is_compiled(path, opened, model.get("configFile"), names),
        modules=tuple(sorted(modules)),
        unused=tuple(sorted(names - used)),
        _opened=opened,
    )


def _model_of_manifest(path: Path, opened: zipfile.ZipFile) -> dict[str, Any]:
    if MANIFEST not in opened.namelist():
        raise ArchiveError(
            f"{path}: no {MANIFEST}; an archive for TorchServe has one (torch-model-archiver)"
        )
    try:
        model: Any = json.loads(_read(opened, MANIFEST, path, MAX_TEXT_BYTES))["model"]
        texts = ("modelName", "modelVersion", "handler", "serializedFile", "modelFile")
        right = isinstance(model["modelName"], str) and all(
            isinstance(model.get(key, ""), str) for key in (*texts, "configFile")
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise ArchiveError(f"{path}: its {MANIFEST} is not one that torch-model-archiver writes")
    described: dict[str, Any] = model
    return described


def _only_class(path: Path, opened: zipfile.ZipFile, model_file: str) -> str:
    """Return the name of the class that TorchServe would take, without importing the file."""
    try:
        tree = ast.parse(_read(opened, model_file, path, _MAX_CODE_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(f"{path}: {model_file} is not Python: {error}") from None
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(names) != 1:
        listed = f"the classes {', '.join(names[:10])}" if names else "no class"
        raise ArchiveError(
            f"{path}: {model_file} defines {listed}; TorchServe serves a model file that defines "
            "exactly one"
        )
    return names[0]


def _is_compiled(
    path: Path, opened: zipfile.ZipFile, config_file: str | None, names: set[str]
) -> bool:
    if not config_file or config_file not in names:
        return False
    try:
        text = _read(opened, config_file, path, _MAX_CODE_BYTES).decode()
        config: Any = BoundedLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ArchiveError(f"{path}: {config_file} cannot be read as YAML: {error}") from None
    options = config.get("pt2") if isinstance(config, dict) else None
    inner = options.get("compile") if isinstance(options, dict) else None
    if isinstance(inner, dict):
        return inner.get("enable") is True
    return bool(options) and not (isinstance(options, dict) and "export" in options)


def _read(opened: zipfile.ZipFile, name: str, path: Path, max_bytes: int) -> bytes:
    try:
        if opened.getinfo(name).file_size > max_bytes:
            raise ArchiveError(f"{path}: {name} has more than {max_bytes} bytes")
        return opened.read(name)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArchiveError:
    return ArchiveError(f"{path}: it cannot be read as a model archive ({error}); copy it again")
