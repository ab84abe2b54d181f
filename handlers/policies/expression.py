"""Expressions over members and policies, e.g. ``any(cnn, mlp) and mean >= 0.7``.

An expression decides each label by itself: a comparison by the combined score, a member by its
vote, a policy by its decision, and ``and``, ``or`` and ``not`` join them. Its score is the fuzzy
truth of Zadeh (1965): the least of what ``and`` joins, the largest of what ``or`` joins, 1 - s for
``not s`` and for ``s < limit``, and s itself for ``s > limit``, whatever the limit.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.suggestions import nearest
from ..base.tasks import Task
from .ballot import DECIDING, Ballot, Outcome
from .catalogue import Catalogue
from .registry import EXPRESSION, BoundPolicy, Definition, InvalidParameter, bind, definition
from .source import Source

MAX_DEPTH = 20
"""Levels of nesting in an expression."""

_MEMBER = "member"


class _Truth(NamedTuple):
    """Decisions (N, C) bool and scores (N, C) float32 of a part of an expression."""

    decisions: Tensor
    scores: Tensor


_Condition = Callable[[Ballot], _Truth]
_Operand = Callable[[Ballot], Outcome]


def compile_expression(source: Source, tree: ast.expr, catalogue: Catalogue) -> BoundPolicy:
    """Check an expression against the deployment and make it a policy.

    Args:
        source: the text, for messages.
        tree: its syntax tree.
        catalogue: members, task and fitted models of the deployment.

    Raises:
        PolicyError: points at the first part that is not understood or does not fit.
    """
    if catalogue.task not in DECIDING:
        reason = f"an expression chooses labels, which task {catalogue.task} has none of"
        raise source.error(f"{reason}; {catalogue.choices()}", 0)
    condition = _Compiler(source, catalogue).condition(tree, 0)

    def combine(ballot: Ballot) -> Outcome:
        truth = condition(ballot)
        undecided = ballot.task is Task.CLASSIFICATION
        return Outcome(
            scores=truth.scores,
            decisions=truth.decisions,
            abstained=~truth.decisions.any(dim=-1) if undecided else None,
        )

    return BoundPolicy(EXPRESSION, {"text": ast.unparse(tree)}, combine)


def literals(source: Source, call: ast.Call) -> dict[str, Any]:
    """The keyword arguments of a call: numbers and texts.

    Raises:
        PolicyError: points at an argument that is something else.
    """
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise source.error("parameters are written as name=value", keyword.value)
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, int | float | str):
            raise source.error(
                f"parameter {keyword.arg} must be a number, or a text in quotes", keyword.value
            )
        values[keyword.arg] = value
    return values


def bind_at(
    source: Source,
    call: ast.Call | None,
    known: Definition,
    parameters: Mapping[str, Any],
    catalogue: Catalogue,
    member_names: Sequence[str],
) -> BoundPolicy:
    """Bind a policy; a mistake is pointed at where the text holds the parameter.

    Raises:
        PolicyError: the policy does not fit the task, or a parameter does not fit the policy.
    """
    place: ast.AST | int = 0 if call is None else call
    if catalogue.task not in known.tasks:
        raise source.error(catalogue.misfit(known.name), place)
    try:
        return bind(
            known,
            parameters,
            task=catalogue.task,
            member_names=member_names,
            fitted=catalogue.fitted,
        )
    except InvalidParameter as error:
        written = {keyword.arg: keyword.value for keyword in call.keywords} if call else {}
        raise source.error(
            f"policy '{known.name}': {error}", written.get(error.parameter, place)
        ) from None


class _Compiler:
    """Turns a syntax tree into functions of a ballot, by a whitelist of nodes."""

    def __init__(self, source: Source, catalogue: Catalogue) -> None:
        self._source = source
        self._catalogue = catalogue

    def condition(self, node: ast.expr, depth: int) -> _Condition:
        """What is true or false of each label."""
        if depth > MAX_DEPTH:
            raise self._source.error(
                f"the expression is nested deeper than {MAX_DEPTH} levels", node
            )
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value, depth + 1) for value in node.values]
            return _conjunction(parts) if isinstance(node.op, ast.And) else _disjunction(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _negation(self.condition(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        operand = self._operand(node)

        def decided(ballot: Ballot) -> _Truth:
            outcome = operand(ballot)
            assert outcome.decisions is not None
            return _Truth(outcome.decisions, outcome.scores)

        return decided

    def _comparison(self, node: ast.Compare) -> _Condition:
        """``operand >= number``, either way round; a chain, ``0.2 < mean < 0.8``, is an and."""
        sides = [node.left, *node.comparators]
        parts = [
            self._compared(left, operator, right)
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return _conjunction(parts)

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> _Condition:
        if not isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            raise self._source.error("scores are compared with <, <=, > or >=", right)
        number_is_left = isinstance(left, ast.Constant)
        operand = self._operand(right if number_is_left else left)
        limit = self._limit(left if number_is_left else right)
        at_least = isinstance(operator, ast.Gt | ast.GtE) != number_is_left
        strict = isinstance(operator, ast.Gt | ast.Lt)

        def compared(ballot: Ballot) -> _Truth:
            scores = operand(ballot).scores
            if at_least:
                return _Truth(scores > limit if strict else scores >= limit, scores)
            return _Truth(scores < limit if strict else scores <= limit, 1 - scores)

        return compared

    def _limit(self, node: ast.expr) -> float:
        value = node.value if isinstance(node, ast.Constant) else None
        # A bool is an int to Python, and nothing that a score is compared with.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._source.error("a score is compared with a number from 0 to 1", node)
        # Compared first: an integer of some hundred digits is no float.
        if not 0 <= value <= 1:
            raise self._source.error("scores lie between 0 and 1, and so must the number", node)
        return float(value)

    def _operand(self, node: ast.expr) -> _Operand:
        """A member or a policy."""
        if isinstance(node, ast.Name):
            known = definition(node.id)
            if known is not None:
                return self._policy(node, known, None)
            return _member(self._member_name(node, node.id))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == _MEMBER:
                return _member(self._quoted_member(node))
            known = definition(node.func.id)
            if known is None:
                raise self._source.error(self._catalogue.unknown(node.func.id), node)
            return self._policy(node, known, node)
        raise self._source.error(
            "not part of an expression; it joins members, policies such as at_least(k=2) and "
            'comparisons such as mean >= 0.7 with and, or, not; write member("name") for a '
            "member whose name is not a plain word",
            node,
        )

    def _policy(self, node: ast.expr, known: Definition, call: ast.Call | None) -> _Operand:
        names = [self._argument(argument) for argument in call.args] if call else []
        for position, name in enumerate(names):
            if call is not None and name in names[:position]:
                raise self._source.error(f"member {name} is given twice", call.args[position])
        parameters = literals(self._source, call) if call else {}
        for option in ("min_confidence", "max_disagreement"):
            if option in parameters:
                raise self._source.error(
                    f"{option} goes with a policy alone: inside an expression nothing abstains",
                    node,
                )
        bound = bind_at(
            self._source,
            call,
            known,
            parameters,
            self._catalogue,
            names or self._catalogue.member_names,
        )
        if not names:
            return bound.combine
        return lambda ballot: bound.combine(ballot.select(ballot.indices(names)))

    def _argument(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._member_name(node, node.id)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == _MEMBER
        ):
            return self._quoted_member(node)
        raise self._source.error(
            'a policy takes members, then parameters: any(cnn, member("cnn-2")), at_least(k=2)',
            node,
        )

    def _quoted_member(self, call: ast.Call) -> str:
        value = call.args[0] if len(call.args) == 1 and not call.keywords else None
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            raise self._source.error('a member is written as member("name")', call)
        return self._member_name(value, value.value)

    def _member_name(self, node: ast.expr, name: str) -> str:
        if name not in self._catalogue.member_names:
            policies = self._catalogue.fitting()
            raise self._source.error(
                f"'{name}' is neither a member ({', '.join(self._catalogue.member_names)}) nor a "
                f"policy ({', '.join(policies)})"
                f"{nearest(name, [*self._catalogue.member_names, *policies])}",
                node,
            )
        return name


def _member(name: str) -> _Operand:
    def voted(ballot: Ballot) -> Outcome:
        (index,) = ballot.indices([name])
        return Outcome(ballot.scores[index], ballot.votes[index])

    return voted


def _conjunction(parts: Sequence[_Condition]) -> _Condition:
    def both(left: _Truth, right: _Truth) -> _Truth:
        return _Truth(left.decisions & right.decisions, torch.minimum(left.scores, right.scores))

    return lambda ballot: reduce(both, (part(ballot) for part in parts))


def _disjunction(parts: Sequence[_Condition]) -> _Condition:
    def either(left: _Truth, right: _Truth) -> _Truth:
        return _Truth(left.decisions | right.decisions, torch.maximum(left.scores, right.scores))

    return lambda ballot: reduce(either, (part(ballot) for part in parts))


def _negation(part: _Condition) -> _Condition:
    def inverted(ballot: Ballot) -> _Truth:
        truth = part(ballot)
        return _Truth(~truth.decisions, 1 - truth.scores)

    return inverted
