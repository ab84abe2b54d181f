"""What the text of a policy is made of.

It is read from the syntax tree: a member may be called ``weighted_a`` or ``low-threshold``, so that
no word in the text says by itself what the policy does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..handlers.base.errors import PolicyError
from ..handlers.policies.registry import definition
from ..handlers.policies.source import Source

_WEIGHING = frozenset({"weighted_mean", "weighted_vote"})
_LIMITS = frozenset({"threshold", "min_confidence", "confidence"})


def weighs_members(policy: str) -> bool:
    """Whether a policy uses the members' voting weights."""
    return any(name in _WEIGHING for name, _ in _policies(_tree(policy)))


def has_limits(policy: str) -> bool:
    """Whether a policy compares scores with a number of its own, such as a threshold."""
    tree = _tree(policy)
    if tree is None:
        return False
    if any(isinstance(node, ast.Compare) for node in ast.walk(tree)):
        return True
    return any(_LIMITS & _parameters(node) for _, node in _policies(tree))


def lacks_model(policy: str, kind: str) -> bool:
    """Whether a policy takes a fitted model of a kind and does not name one."""
    return any(_takes(kind, *part) for part in _policies(_tree(policy)))


def with_model(policy: str, kind: str, model: str) -> str:
    """``stacking(threshold=0.3)`` -> ``stacking(model="...", threshold=0.3)``.

    Args:
        policy: its text.
        kind: of the fitted model, which is the name of the policy that takes it.
        model: its name in ``policies.fitted``.
    """
    text = Source.of(policy).text
    places = [node for name, node in _policies(_tree(policy)) if _takes(kind, name, node)]
    # From the end, so that the places before stay where they are.
    for node in sorted(places, key=lambda node: node.col_offset, reverse=True):
        place, written = _insertion(node, f'model="{model}"')
        text = text[:place] + written + text[place:]
    return text


def _tree(policy: str) -> ast.expr | None:
    """The syntax tree; None where there is none, as for the name ``2nd-reader``."""
    try:
        return Source.of(policy).tree()
    except PolicyError:
        return None


def _policies(node: ast.AST | None) -> Iterator[tuple[str, ast.Name | ast.Call]]:
    """Each registered policy in a tree, with its place; members are none, whatever their names."""
    match node:
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            if definition(name) is not None:
                yield name, node
        case ast.BoolOp() | ast.UnaryOp() | ast.Compare():
            for child in ast.iter_child_nodes(node):
                yield from _policies(child)


def _parameters(node: ast.Name | ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()


def _takes(kind: str, name: str, node: ast.Name | ast.Call) -> bool:
    return name == kind and "model" not in _parameters(node)


def _insertion(node: ast.Name | ast.Call, parameter: str) -> tuple[int, str]:
    """Where a parameter goes, and what is written there."""
    end = node.end_col_offset or 0
    if isinstance(node, ast.Name):
        return end, f"({parameter})"
    if node.keywords:
        return node.keywords[0].col_offset, f"{parameter}, "
    # Before the closing parenthesis.
    return end - 1, f", {parameter}" if node.args else parameter
