"""Imports Python code of the user, which a spec names as ``FILE.py:NAME``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import MemberError
from .suggestions import nearest

_MODULE_PREFIX = "_member_code_"
# Name of each module that a user's file imported from its own folder -> that folder.
_folder_of_neighbour: dict[str, Path] = {}


def file_of(text: str) -> str | None:
    """Return the file of a text ``FILE.py:NAME``, as a path from the spec's folder.

    Returns:
        None if the text has another form, such as ``torchvision.models.NAME``.
    """
    stem, separator, _ = text.partition(".py:")
    return f"{stem}.py" if separator else None


@dataclass(frozen=True)
class OwnFunction:
    """A function of the user's own.

    Attributes:
        name: ``FILE.py:FUNCTION``, as the spec has it.
        function: takes one argument.
    """

    name: str
    function: Callable[[Any], Any]

    @classmethod
    def load(cls, folder: Path, name: str) -> OwnFunction:
        """Load a function of one argument.

        Args:
            folder: contains the files that the spec names.
            name: ``FILE.py:FUNCTION``.

        Raises:
            MemberError: the file cannot be imported, does not define the function, or the function
                cannot be called with one argument.
        """
        with imports_from(folder):
            function = load_own(folder, name)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            # Functions of C extensions may have no signature that Python knows.
            return cls(name, function)
        try:
            signature.bind(None)
        except TypeError:
            problem = f"{name} is called with one argument, and takes {signature}"
            raise MemberError(problem) from None
        return cls(name, function)

    def failure(self, error: BaseException) -> str:
        """Describe an error of the function: its name, then file, line and message."""
        return f"{self.name}: {described(error, file_of(self.name) or self.name)}"


def load_own(folder: Path, text: str) -> Callable[..., Any]:
    """Import a user's file and return the class or function that a spec names in it.

    Args:
        folder: the folder that holds the files of the spec.
        text: the spec's text ``FILE.py:NAME``.

    Raises:
        MemberError: the file cannot be imported, or does not define the name.
    """
    stem, _, name = text.partition(".py:")
    file = f"{stem}.py"
    module = _import_file(folder, file)
    value = getattr(module, name, None)
    if not callable(value):
        names = [
            key
            for key, each in vars(module).items()
            if callable(each) and getattr(each, "__module__", None) == module.__name__
        ]
        raise MemberError(f"{file} has no class or function '{name}'{nearest(name, names)}")
    class_or_function: Callable[..., Any] = value
    return class_or_function


def described(error: BaseException, file: str) -> str:
    """Describe an error that a user's code raised: file, line, class and message.

    Args:
        error: the error, caught with its traceback.
        file: the user's file. The line is the last one of this file in the traceback.
    """
    name = Path(file).name
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == name]
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {error}"


def _import_file(folder: Path, file: str) -> ModuleType:
    """Import a user's file under a name that no other file in `sys.modules` has.

    The name contains a digest of path and contents. So equal file names of two ensembles do not
    replace each other, and a changed file is imported again.

    Raises:
        MemberError: the file cannot be read or imported.
    """
    path = folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MemberError(f"{file} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()
    module_name = f"{_MODULE_PREFIX}{digest[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        # Compiled from the bytes that were read: Python's import could take the byte code of an
        # older version of the file.
        exec(compile(content, path, "exec"), vars(module))
    except Exception as error:
        del sys.modules[module_name]
        raise MemberError(
            f"{file} cannot be imported: {type(error).__name__}: {error} (modules that it imports "
            "from the spec's folder must be listed in extra_files)"
        ) from error
    return module


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Let a user's code import modules from its folder, within a ``with`` block.

    Modules that code of another ensemble imported from its own folder are first removed from
    `sys.modules`. So two ensembles may have different modules of the same name.

    Args:
        folder: the folder that holds the files of the spec.
    """
    folder = folder.resolve()
    for name, origin in list(_folder_of_neighbour.items()):
        if origin != folder:
            sys.modules.pop(name, None)
            del _folder_of_neighbour[name]
    modules_before, dont_write_before = set(sys.modules), sys.dont_write_bytecode
    # Byte code in the extracted archive would not be listed in its record, so the next worker
    # would refuse to load the archive.
    sys.dont_write_bytecode = True
    # The import system remembers which files a folder had when it last looked. Without this call
    # it would not see files that were written since.
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = dont_write_before
        sys.path.remove(str(folder))
        for name in set(sys.modules) - modules_before:
            file = getattr(sys.modules[name], "__file__", None)
            is_inside = file is not None and Path(file).resolve().is_relative_to(folder)
            if is_inside and not name.startswith(_MODULE_PREFIX):
                _folder_of_neighbour[name] = folder
