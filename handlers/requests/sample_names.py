"""Gives the samples of one request names that differ from each other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterator, Sequence


def distinct_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once, and leave all others as they are.

    Three times ``file`` becomes ``file[0]``, ``file[1]``, ``file[2]``. A number that would make one
    of the given names is not used.
    """
    counts = Counter(names)
    numbered = {name: _numbered(name, counts) for name, count in counts.items() if count > 1}
    return [next(numbered[name]) if name in numbered else name for name in names]


def _numbered(name: str, taken: Container[str]) -> Iterator[str]:
    """Yield ``name[0]``, ``name[1]`` and so on, except for names that are taken."""
    for number in itertools.count():
        candidate = f"{name}[{number}]"
        if candidate not in taken:
            yield candidate
