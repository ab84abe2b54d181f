"""How a client's own words stand in a message: short, and printable whatever they are."""

from __future__ import annotations

from collections.abc import Sequence, Sized

MAX_NAME = 256
"""Characters in the name of an input, an output or a sample: each answer repeats it."""

_MAX_SHOWN = 60
"""Characters of a value that a message repeats."""

_MAX_NAMES_SHOWN = 3
"""Names that a message lists before it only counts the others."""

_MAX_INTEGER_BITS = 200
"""Python refuses to write integers of some thousand digits; nobody reads more than sixty."""


def is_text(text: str) -> bool:
    """Whether a client's text is Unicode. JSON can spell half a character, as ``\\ud800`` is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value for a message; long texts are cut, and lists and objects are only counted.

    The cost does not depend on the size of the value.
    """
    if isinstance(value, str):
        text = ascii(value[: _MAX_SHOWN + 1])
        return text if len(text) <= _MAX_SHOWN + 2 else f"{text[:_MAX_SHOWN]}..."
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if isinstance(value, int):
        short = value.bit_length() <= _MAX_INTEGER_BITS
        return str(value) if short else f"a number of {value.bit_length()} bits"
    if isinstance(value, Sized):
        kind = "object" if isinstance(value, dict) else type(value).__name__
        return f"a JSON {kind} of {len(value)}"
    return type(value).__name__


def shown_names(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    listed = ", ".join(shown(name) for name in names[:_MAX_NAMES_SHOWN])
    more = len(names) - _MAX_NAMES_SHOWN
    return listed if more <= 0 else f"{listed} and {more} more"
