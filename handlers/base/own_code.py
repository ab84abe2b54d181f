"""Code of the user's own that a spec names as ``FILE.py:NAME``."""

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

_OWN_NAME = "_member_code_"
# Modules that users' files imported from their own folder -> that folder.
_imported_from: dict[str, Path] = {}


def file_of(text: str) -> str | None:
    """The file of ``FILE.py:NAME``, relative to the spec; None if the text is not of this form."""
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
    """Load a class or function from a user's file.

    Args:
        folder: where the files that the spec names are.
        text: ``FILE.py:NAME``.

    Raises:
        MemberError: the file cannot be imported, or does not define the name.
    """
    stem, _, name = text.partition(".py:")
    file = f"{stem}.py"
    module = _import_file(folder, file)
    found = getattr(module, name, None)
    if not callable(found):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise MemberError(f"{file} has no class or function '{name}'{nearest(name, known)}")
    own: Callable[..., Any] = found
    return own


def described(error: BaseException, file: str) -> str:
    """An error of a user's code, with the last line of the user's file that it came through."""
    name = Path(file).name
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == name]
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {error}"


def _import_file(folder: Path, file: str) -> ModuleType:
    """Import a file under a name of its own, so that members never meet in `sys.modules`."""
    path = folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MemberError(f"{file} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()
    module_name = f"{_OWN_NAME}{digest[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        # From these very bytes: the import system might take the bytecode of an older file.
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
    """Let the user's code import its neighbours, and never those of another ensemble."""
    folder = folder.resolve()
    for name, origin in list(_imported_from.items()):
        if origin != folder:
            sys.modules.pop(name, None)
            del _imported_from[name]
    before, writes_no_byte_code = set(sys.modules), sys.dont_write_bytecode
    # It would not be listed in the archive's record, and the next worker refuses what is not.
    sys.dont_write_bytecode = True
    # The files may be younger than the import system's view of the folder.
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_no_byte_code
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            inside = file is not None and Path(file).resolve().is_relative_to(folder)
            if inside and not name.startswith(_OWN_NAME):
                _imported_from[name] = folder
