"""Suggestions for misspelt names, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

# difflib takes longer than linearly in both.
_MAX_COMPARED_LENGTH = 100
_MAX_CHOICES = 1000


def nearest(value: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest choice, or an empty string.

    Long values are not compared: it takes time, and nobody misspells a name of so many letters.
    """
    if len(value) > _MAX_COMPARED_LENGTH:
        return ""
    choices = (
        choice for choice in islice(choices, _MAX_CHOICES) if len(choice) <= _MAX_COMPARED_LENGTH
    )
    close = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
