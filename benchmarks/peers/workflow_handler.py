"""The first and the last node of the workflow's graph, between which the members lie."""

import json
from typing import Any


def begin(data: Any, context: object) -> Any:
    """Pass the image on to every member, because a graph must have a single first node.

    Args:
        data: one entry for each request; None when TorchServe loads the function.
        context: not used.
    """
    return None if data is None else [row.get("data") or row.get("body") for row in data]


def gather(data: Any, context: object) -> Any:
    """Collect each member's best label.

    Args:
        data: for each request the members' answers, by the name of their node; None when
            TorchServe loads the function.
        context: not used.
    """
    return None if data is None else [{name: _best(row[name]) for name in row} for row in data]


def _best(answer: Any) -> str:
    scores: dict[str, float] = answer if isinstance(answer, dict) else json.loads(answer)
    return str(max(scores, key=scores.__getitem__))
