"""Suggests the right spelling of a misspelt name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

# difflib's time grows with the number of choices and, faster than linearly, with their length.
_MAX_COMPARED_CHARACTERS = 100
_MAX_CHOICES = 1000
_MIN_SIMILARITY = 0.6
"""Similarity, from 0 to 1, below which a name is not suggested; the default of difflib."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the choice most similar to a value.

    Returns:
        An empty string if no choice is similar enough, or if the value is very long: comparing
        long texts takes time, and nobody misspells a name of so many letters.
    """
    if len(value) > _MAX_COMPARED_CHARACTERS:
        return ""
    short_choices = [
        choice
        for choice in islice(choices, _MAX_CHOICES)
        if len(choice) <= _MAX_COMPARED_CHARACTERS
    ]
    similar = difflib.get_close_matches(value, short_choices, n=1, cutoff=_MIN_SIMILARITY)
    return f"; did you mean '{similar[0]}'?" if similar else ""
