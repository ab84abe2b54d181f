"""Reads and writes a config.properties exactly as Java does (``java.util.Properties``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..handlers.base.errors import ServerError

_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_LINE_END = re.compile(r"\r\n|\r|\n")
# The key ends at the first `=`, `:` or white space that no backslash escapes.
_ENTRY = re.compile(
    r"(?P<key>(?:\\.|[^\\=: \t\f])*)[ \t\f]*(?:[=:][ \t\f]*)?(?P<value>.*)", re.DOTALL
)
_ESCAPE = re.compile(r"\\(u(?P<code>.{0,4})|(?P<other>.)|$)", re.DOTALL)


def read_properties(path: Path) -> dict[str, str]:
    """Read the settings of a config.properties as Java would read them.

    ``key=value``, ``key: value`` and ``key value`` are the same entry, ``#`` and ``!`` begin
    comments, a backslash at the end continues a line, and the encoding is Latin-1 with ``\\uXXXX``.

    Raises:
        ServerError: the file cannot be read, Java would refuse it, or it begins with a byte order
            mark, which Java would take for a part of the first key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ServerError(f"{path}: cannot be read: {error}") from error
    if content.startswith(b"\xef\xbb\xbf"):
        raise ServerError(
            f"{path}: begins with a byte order mark, which Java takes for a part of the first key; "
            "save it as UTF-8 without one"
        )
    properties = {}
    for line in _logical_lines(content.decode("latin-1")):
        entry = _ENTRY.fullmatch(line)
        assert entry is not None, "both parts may be empty, so every line is an entry"
        try:
            properties[_unescaped(entry["key"])] = _unescaped(entry["value"])
        except ValueError as error:
            raise ServerError(f"{path}: {line!r}: {error}; Java refuses the file") from None
    return properties


def write_properties(properties: Mapping[str, str]) -> str:
    """The text of a config.properties from which Java reads exactly these settings."""
    return "".join(
        f"{_escaped(key, ' =:#!')}={_escaped(value)}\n" for key, value in properties.items()
    )


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the entries of a file: continued lines are joined, comments and blank lines dropped."""
    joined, continued = "", False
    lines = _LINE_END.split(text)
    for line in lines if lines[-1] else lines[:-1]:
        line = line.lstrip(" \t\f")
        if not joined and line[:1] in ("", "#", "!"):
            continued = False
            continue
        joined += line
        # An even number of backslashes at the end stands for backslashes, not for a continuation.
        continued = (len(joined) - len(joined.rstrip("\\"))) % 2 == 1
        if continued:
            joined = joined[:-1]
        else:
            yield joined
            joined = ""
    if joined or continued:
        yield joined


def _unescaped(text: str) -> str:
    """Replace escapes by the characters that they stand for.

    Raises:
        ValueError: ``\\u`` is not followed by four hexadecimal digits.
    """

    def character(escape: re.Match[str]) -> str:
        if escape["code"] is not None:
            if not re.fullmatch("[0-9a-fA-F]{4}", escape["code"]):
                raise ValueError("\\u needs four hexadecimal digits")
            return chr(int(escape["code"], 16))
        return _ESCAPES.get(escape["other"] or "", escape["other"] or "")

    # Java's characters are UTF-16 code units, so that two escapes may make one character.
    code_units = _ESCAPE.sub(character, text)
    return code_units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escaped(text: str, separators: str = "") -> str:
    """Escape the characters that Java's reader would not read as themselves.

    Args:
        text: a key or a value.
        separators: further characters to escape; those that would end a key or begin a comment.
    """
    escapes = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}
    escapes |= {separator: f"\\{separator}" for separator in separators}
    escaped = "".join(escapes.get(character, character) for character in text)
    if escaped.startswith(" "):
        escaped = f"\\{escaped}"
    return "".join(each if each.isascii() else _utf16_escapes(each) for each in escaped)


def _utf16_escapes(character: str) -> str:
    """One ``\\uXXXX`` for each UTF-16 code unit of a character."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
