"""Find out from the text of a policy what it needs: weights, thresholds, fitted models.

The syntax tree is searched and not the text, since a member may be called ``weighted_a`` or
``low-threshold``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..handlers.base.errors import PolicyError
from ..handlers.policies.registry import definition
from ..handlers.policies.source import Source

_WEIGHTED_POLICIES = frozenset({"weighted_mean", "weighted_vote"})
_THRESHOLD_PARAMETERS = frozenset({"threshold", "min_confidence", "confidence"})


def weighs_members(policy: str) -> bool:
    """Whether a policy uses the members' voting weights."""
    return any(name in _WEIGHTED_POLICIES for name, _ in _policies(_tree(policy)))


def has_thresholds(policy: str) -> bool:
    """Whether a policy compares scores with a number that is written in its text."""
    tree = _tree(policy)
    if tree is None:
        return False
    if any(isinstance(node, ast.Compare) for node in ast.walk(tree)):
        return True
    return any(_THRESHOLD_PARAMETERS & _parameters(node) for _, node in _policies(tree))


def lacks_model(policy: str, kind: str) -> bool:
    """Whether a policy needs a fitted model of a kind, but does not name one."""
    return any(_takes(kind, *part) for part in _policies(_tree(policy)))


def with_model(policy: str, kind: str, model: str) -> str:
    """Name a fitted model in a policy: ``stacking`` -> ``stacking(model="...")``.

    Args:
        policy: the policy as text.
        kind: kind of the fitted model, which is the name of the policy that takes it.
        model: name of the model in ``policies.fitted``.
    """
    text = Source.of(policy).text
    nodes = [node for name, node in _policies(_tree(policy)) if _takes(kind, name, node)]
    # From the end, so that the offsets of earlier nodes stay valid.
    for node in sorted(nodes, key=lambda node: node.col_offset, reverse=True):
        offset, insertion = _insertion(node, f'model="{model}"')
        text = text[:offset] + insertion + text[offset:]
    return text


def _tree(policy: str) -> ast.expr | None:
    """The syntax tree; None if the text is no expression, such as the name ``2nd-reader``."""
    try:
        return Source.of(policy).tree()
    except PolicyError:
        return None


def _policies(node: ast.AST | None) -> Iterator[tuple[str, ast.Name | ast.Call]]:
    """Yield the name and the node of each registered policy in a tree; members are left out."""
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
    """The offset at which a parameter is inserted into a policy, and the text to insert."""
    end = node.end_col_offset or 0
    if isinstance(node, ast.Name):
        return end, f"({parameter})"
    if node.keywords:
        return node.keywords[0].col_offset, f"{parameter}, "
    # Before the closing parenthesis.
    return end - 1, f", {parameter}" if node.args else parameter
