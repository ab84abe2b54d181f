"""Reads the archive of one model, as torch-model-archiver writes it for stock TorchServe.

Such an archive may come from anywhere. It is checked before any of its files is written. None of
its code runs: Python files are parsed for the names of classes, and nothing is unpickled here.
"""

from __future__ import annotations

import ast
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..handlers.archive.mar_file import ambiguous_names, check_zip_end
from ..handlers.archive.record import sha256_of_file
from ..handlers.archive.verification import MAX_TEXT_BYTES
from ..handlers.base.archive_layout import MANIFEST, name_problem
from ..handlers.base.errors import ArchiveError
from ..handlers.base.quoting import printable
from ..handlers.spec.bounded_yaml import BoundedLoader

LABELS = "index_to_name.json"
"""Name of the file of labels that TorchServe's own handlers read."""

HANDLER = "image_classifier"
"""The only handler that can be adopted: its source shows what it does to images and outputs."""

_BYTE_CODE_PROBLEM = name_problem("module.pyc")
_MAX_PROBLEMS_SHOWN = 5
_MAX_CLASSES_SHOWN = 10
_MAX_SHOWN_CHARACTERS = 100
_BLOCK_BYTES = 1024**2
_MAX_CODE_BYTES = 1_000_000
# An archive of `size` bytes may unpack to _MAX_EXTRA_BYTES + _MAX_COMPRESSION_RATIO * size bytes.
# Trained weights hardly compress. The extra bytes are for small networks of experiments, whose
# weights may all be equal and then compress well.
_MAX_COMPRESSION_RATIO = 20
_MAX_EXTRA_BYTES = 64 * 1024**2
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Both TorchScript and torch.save write zip files; only those of TorchScript contain this file.
_TORCHSCRIPT_FILE = "constants.pkl"


@dataclass(frozen=True)
class StockArchive:
    """The archive of one model, opened for reading.

    Attributes:
        path: path of the archive.
        sha256: SHA-256 of the archive, in hexadecimal.
        model_name: the model's name in the manifest.
        model_version: the model's version in the manifest; empty if it has none.
        weights: name of the file with the weights.
        model_file: name of the Python file that defines the network; None for TorchScript.
        model_class: name of the only class in `model_file`; None for TorchScript.
        compiled: whether TorchServe compiles the network with torch.compile when it loads it.
        modules: names of the other Python files, which `model_file` may import.
        unused: names of the files that an ensemble does not need.
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
        """Whether the archive contains a file `LABELS`."""
        return LABELS in self._opened.namelist()

    def read(self, name: str) -> bytes:
        """Return the contents of a text file.

        Raises:
            ArchiveError: the file is damaged, or larger than `MAX_TEXT_BYTES`.
        """
        return _read(self._opened, name, self.path, MAX_TEXT_BYTES)

    def extract(self, name: str, target: Path) -> None:
        """Copy a file out of the archive.

        Args:
            name: name of the file in the archive.
            target: path of the copy, which must not exist yet.

        Raises:
            ArchiveError: the file is damaged.
        """
        try:
            with self._opened.open(name) as source, target.open("xb") as file:
                while block := source.read(_BLOCK_BYTES):
                    file.write(block)
        except _DAMAGE_ERRORS as error:
            raise _damaged(self.path, error) from error


_DAMAGE_ERRORS = (ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""Errors that zipfile and zlib raise if an archive is damaged, beside OSError."""


@contextmanager
def open_stock_archive(path: Path) -> Iterator[StockArchive]:
    """Check and open the archive of one model, within a ``with`` block.

    Args:
        path: a ``.mar`` file for stock TorchServe.

    Raises:
        ArchiveError: the archive is damaged or dangerous to extract, has another handler than
            `HANDLER`, or is one that stock TorchServe could not serve either.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such archive")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        check_zip_end(file, str(path))
        try:
            opened = zipfile.ZipFile(file)
        except _DAMAGE_ERRORS as error:
            raise _damaged(path, error) from error
        with opened:
            problems = sorted(_problems_of_entries(opened.infolist(), path.stat().st_size))
            if problems:
                num_hidden = len(problems) - _MAX_PROBLEMS_SHOWN
                more = f"; and {num_hidden} more" if num_hidden > 0 else ""
                raise ArchiveError(
                    f"{path}: refused, torch-model-archiver writes no such archive: "
                    f"{'; '.join(problems[:_MAX_PROBLEMS_SHOWN])}{more}"
                )
            yield _stock_archive(path, opened)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, without loading it."""
    try:
        with path.open("rb") as file:
            check_zip_end(file, str(path))
            with zipfile.ZipFile(file) as opened:
                names = opened.namelist()
    except (OSError, ArchiveError, *_DAMAGE_ERRORS):
        return False
    return any(name.rpartition("/")[2] == _TORCHSCRIPT_FILE for name in names)


def _problems_of_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[str]:
    """Yield one sentence for each thing that makes an archive dangerous to extract.

    Args:
        entries: the entries of the archive's directory.
        size: size of the archive in bytes.
    """
    yield from ambiguous_names(entries)
    for entry in entries:
        name = printable(entry.filename)
        reason = name_problem(entry.orig_filename.removesuffix("/"))
        # Byte code is harmless here, since it is not copied.
        if reason not in (None, _BYTE_CODE_PROBLEM):
            shortened = entry.orig_filename[:_MAX_SHOWN_CHARACTERS]
            yield f"the name {shortened!r} is not allowed: {reason}"
        if entry.flag_bits & 1:
            yield f"{name} is encrypted"
        if entry.compress_type not in _COMPRESSIONS:
            yield f"{name} is compressed in another way than by deflate"
        mode = entry.external_attr >> 16
        allowed = stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
        if stat.S_IFMT(mode) not in (0, allowed):
            yield f"{name} is a link or no regular file"
    unpacked_bytes = sum(entry.file_size for entry in entries)
    max_unpacked_bytes = _MAX_EXTRA_BYTES + _MAX_COMPRESSION_RATIO * size
    if unpacked_bytes > max_unpacked_bytes:
        yield (
            f"its {size} bytes unpack to {unpacked_bytes}, more than the {max_unpacked_bytes} that "
            "are allowed: weights hardly compress"
        )


def _stock_archive(path: Path, opened: zipfile.ZipFile) -> StockArchive:
    """Read an archive's manifest, settings and the names of its files.

    Raises:
        ArchiveError: the archive has another handler than `HANDLER`, or is one that stock
            TorchServe could not serve either.
    """
    model = _model_of_manifest(path, opened)
    handler = model.get("handler")
    if handler != HANDLER:
        raise ArchiveError(
            f"{path}: its handler is {printable(str(handler))[:_MAX_SHOWN_CHARACTERS]!r}, and only "
            f"TorchServe's own {HANDLER} can be adopted: this command cannot see what other code "
            "does before and after the network. Write a spec instead (docs/first-hour.md)"
        )
    weights, model_file = model.get("serializedFile"), model.get("modelFile")
    names = {entry.filename for entry in opened.infolist() if not entry.is_dir()}
    for key, name in (("serializedFile", weights), ("modelFile", model_file)):
        if name and name not in names:
            raise ArchiveError(f"{path}: its manifest names the {key} {name!r}, which is missing")
    if model_file and ("/" in model_file or not model_file.endswith(".py")):
        raise ArchiveError(
            f"{path}: its model file {printable(model_file)!r} is no Python file at the root"
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
        sha256=sha256_of_file(path),
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
    """Return the part ``model`` of a manifest, after checking that the values used are strings.

    Raises:
        ArchiveError: the manifest is missing, or is not one that torch-model-archiver writes.
    """
    if MANIFEST not in opened.namelist():
        raise ArchiveError(
            f"{path}: no {MANIFEST}; an archive for TorchServe has one (torch-model-archiver)"
        )
    try:
        model: Any = json.loads(_read(opened, MANIFEST, path, MAX_TEXT_BYTES))["model"]
        optional = ("modelVersion", "handler", "serializedFile", "modelFile", "configFile")
        is_valid = isinstance(model["modelName"], str) and all(
            isinstance(model.get(key, ""), str) for key in optional
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise ArchiveError(f"{path}: its {MANIFEST} is not one that torch-model-archiver writes")
    checked: dict[str, Any] = model
    return checked


def _only_class(path: Path, opened: zipfile.ZipFile, model_file: str) -> str:
    """Return the name of the only class that a model file defines, without importing the file.

    TorchServe would use this class.

    Raises:
        ArchiveError: the file is not Python, or does not define exactly one class.
    """
    try:
        tree = ast.parse(_read(opened, model_file, path, _MAX_CODE_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(f"{path}: {model_file} is not Python: {error}") from None
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(names) != 1:
        listed = ", ".join(names[:_MAX_CLASSES_SHOWN])
        classes = f"the classes {listed}" if names else "no class"
        raise ArchiveError(
            f"{path}: {model_file} defines {classes}; TorchServe serves a model file that defines "
            "exactly one"
        )
    return names[0]


def _is_compiled(
    path: Path, opened: zipfile.ZipFile, config_file: str | None, names: set[str]
) -> bool:
    """Return whether the settings tell TorchServe to compile the network when it loads it.

    Raises:
        ArchiveError: the settings cannot be read.
    """
    if not config_file or config_file not in names:
        return False
    try:
        text = _read(opened, config_file, path, _MAX_CODE_BYTES).decode()
        config: Any = BoundedLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ArchiveError(f"{path}: {config_file} cannot be read as YAML: {error}") from None
    pt2 = config.get("pt2") if isinstance(config, dict) else None
    compile_options = pt2.get("compile") if isinstance(pt2, dict) else None
    if isinstance(compile_options, dict):
        return compile_options.get("enable") is True
    # TorchServe 0.12.0 also takes the name of a compiler, or options of torch.compile, as `pt2`.
    return bool(pt2) and not (isinstance(pt2, dict) and "export" in pt2)


def _read(opened: zipfile.ZipFile, name: str, path: Path, max_bytes: int) -> bytes:
    """Return the contents of a file in an archive.

    Raises:
        ArchiveError: the file is damaged, or has more than `max_bytes` bytes.
    """
    try:
        if opened.getinfo(name).file_size > max_bytes:
            raise ArchiveError(f"{path}: {name} has more than {max_bytes} bytes")
        return opened.read(name)
    except _DAMAGE_ERRORS as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArchiveError:
    """Return the error that reports a damaged archive."""
    return ArchiveError(f"{path}: it cannot be read as a model archive ({error}); copy it again")
