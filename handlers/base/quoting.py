"""Puts values from outside into messages: short, and printable whatever they contain."""

from __future__ import annotations

from collections.abc import Sequence, Sized

MAX_NAME_CHARACTERS = 256
"""Largest number of characters in the name of an input, output or sample.

Every answer repeats these names.
"""

_MAX_SHOWN_CHARACTERS = 60
"""Number of characters of a text that a message repeats."""

_MAX_NAMES_SHOWN = 3
"""Number of names that a message lists; it only counts the others."""

_MAX_INTEGER_BITS = 200
"""Larger integers are described instead of written.

200 bits are some 60 decimal digits. Python refuses to write integers of some thousand digits.
"""


def is_text(text: str) -> bool:
    """Return whether a client's text is valid Unicode.

    JSON can spell half of a character (a lone surrogate, such as ``\\ud800``), which no UTF-8 text
    can hold.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """Return a name as it is, or escaped if it has characters that are not printable.

    A terminal or a log might take such characters for commands.
    """
    return name if name.isprintable() else ascii(name)


def shown(value: object) -> str:
    """Return a client's value as text for a message.

    Long texts are cut. Of lists and objects the message gives only the type and the number of
    items. The cost does not depend on the size of the value.
    """
    if isinstance(value, str):
        text = ascii(value[: _MAX_SHOWN_CHARACTERS + 1])
        is_short = len(text) <= _MAX_SHOWN_CHARACTERS + 2
        return text if is_short else f"{text[:_MAX_SHOWN_CHARACTERS]}..."
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if isinstance(value, int):
        is_short = value.bit_length() <= _MAX_INTEGER_BITS
        return str(value) if is_short else f"a number of {value.bit_length()} bits"
    if isinstance(value, Sized):
        kind = "object" if isinstance(value, dict) else type(value).__name__
        return f"a JSON {kind} of {len(value)}"
    return type(value).__name__


def shown_names(names: Sequence[str]) -> str:
    """Return the first few names as text for a message, with the number of further names."""
    listed = ", ".join(shown(name) for name in names[:_MAX_NAMES_SHOWN])
    num_hidden = len(names) - _MAX_NAMES_SHOWN
    return listed if num_hidden <= 0 else f"{listed} and {num_hidden} more"
