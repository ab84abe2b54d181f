"""The entries of archives: which of them are samples, and what is wrong with an archive."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...base.errors import RequestError, reason
from ...base.quoting import MAX_NAME_CHARACTERS, is_text
from .items import Item, Unreadable


def is_sample(path: str) -> bool:
    """Return whether a file is a sample, not a hidden file or one that macOS adds to archives."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "__MACOSX" and not parts[-1].startswith(".")


def entry_item(path: str, data: bytes | Unreadable) -> Item:
    """Make the sample of an entry; an answer must be able to repeat the path of the entry."""
    if len(path) <= MAX_NAME_CHARACTERS and is_text(path):
        return Item(path, data)
    writable = path[:MAX_NAME_CHARACTERS].encode("utf-8", "replace").decode()
    problem = f"its name must be Unicode text of at most {MAX_NAME_CHARACTERS} characters"
    return Item(writable, Unreadable(problem))


def damaged_error(name: str, kind: str, error: Exception) -> RequestError:
    """Make the error for an archive that cannot be read.

    Args:
        name: name of the archive.
        kind: ``zip`` or ``tar``.
        error: the error that the reader of such archives raised.
    """
    return RequestError(f"{name}: the {kind} file is damaged ({reason(error)}); pack it again")


def check_not_empty(items: list[Item], name: str, kind: str) -> None:
    """Check that an archive holds at least one sample.

    Args:
        items: the samples of the archive.
        name: name of the archive, for the message.
        kind: ``zip`` or ``tar``, for the message.

    Raises:
        RequestError: the archive holds none.
    """
    if not items:
        raise RequestError(f"{name}: the {kind} file holds no image; put image files into it")
