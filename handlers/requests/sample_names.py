"""Gives the samples of one request names that differ from each other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence


def distinct_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once, and leave all others as they are.

    Three times ``file`` becomes ``file[0]``, ``file[1]``, ``file[2]``. A number is left out if the
    request already contains a name that ends with it.
    """
    counts = Counter(names)
    numbers = {name: itertools.count() for name, count in counts.items() if count > 1}
    return [
        name
        if counts[name] == 1
        else next(
            numbered for number in numbers[name] if (numbered := f"{name}[{number}]") not in counts
        )
        for name in names
    ]
