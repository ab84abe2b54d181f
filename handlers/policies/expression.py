"""Expressions over members and policies, e.g. ``any(cnn, mlp) and mean >= 0.7``.

An expression is true or false for each label separately. A member is true where it votes for the
label, a policy where it chooses the label, and a comparison where the score satisfies it; ``and``,
``or`` and ``not`` combine these parts.

The score of an expression is its fuzzy truth (Zadeh 1965): the minimum of the scores that ``and``
joins, the maximum of the scores that ``or`` joins, and 1 - s for the negation of a part of score s.
The comparison ``s > limit`` has the score s, and ``s < limit`` has 1 - s, whatever the limit is.
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
from .ballot import LABEL_TASKS, Ballot, Outcome
from .catalogue import Catalogue
from .registry import EXPRESSION, BoundPolicy, Definition, ParameterError, bind, definition
from .source import Source

MAX_DEPTH = 20
"""Largest number of nested levels in an expression."""

_MEMBER = "member"


class _Truth(NamedTuple):
    """The value of a part of an expression, for each of N samples and C labels.

    Attributes:
        decisions: (N, C) bool, whether the part is true.
        scores: (N, C) float32, the fuzzy truth of the part.
    """

    decisions: Tensor
    scores: Tensor


# A part of an expression that is true or false, such as ``mean >= 0.7``.
_Condition = Callable[[Ballot], _Truth]

# A member or a policy in an expression, such as ``mean``.
_Operand = Callable[[Ballot], Outcome]


def compile_expression(source: Source, tree: ast.expr, catalogue: Catalogue) -> BoundPolicy:
    """Check an expression against the deployment and turn it into a policy.

    Args:
        source: the text of the expression, for error messages.
        tree: the syntax tree of the text.
        catalogue: members, task and fitted models of the deployment.

    Raises:
        PolicyError: a part of the expression is not allowed by the grammar or does not fit the
            deployment; the message points at the first such part.
    """
    if catalogue.task not in LABEL_TASKS:
        reason = f"an expression chooses labels, and task {catalogue.task} has no labels"
        raise source.error(f"{reason}; {catalogue.choices_hint()}", 0)
    condition = _Compiler(source, catalogue).condition(tree, 0)

    def combine(ballot: Ballot) -> Outcome:
        truth = condition(ballot)
        # No label is a valid answer to yes-or-no questions, but not for a classification.
        can_abstain = ballot.task is Task.CLASSIFICATION
        return Outcome(
            scores=truth.scores,
            decisions=truth.decisions,
            abstained=~truth.decisions.any(dim=-1) if can_abstain else None,
        )

    return BoundPolicy(EXPRESSION, {"text": ast.unparse(tree)}, combine)


def literal_arguments(source: Source, call: ast.Call) -> dict[str, Any]:
    """Read the keyword arguments of a call, which must be numbers or texts.

    Raises:
        PolicyError: an argument is neither; the message points at it.
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


def bind_in_text(
    source: Source,
    call: ast.Call | None,
    registered: Definition,
    parameters: Mapping[str, Any],
    catalogue: Catalogue,
    member_names: Sequence[str],
) -> BoundPolicy:
    """Bind parameters to a policy, with error messages that point at the parameter in the text.

    Args:
        source: the text that contains the policy.
        call: the policy's call in the text; None if the text has only the policy's name.
        registered: the policy.
        parameters: name -> value; some may stand outside of the text.
        catalogue: task and fitted models of the deployment.
        member_names: members whose scores the policy will combine.

    Raises:
        PolicyError: the policy does not fit the task, or a parameter does not fit the policy.
    """
    place: ast.AST | int = 0 if call is None else call
    if catalogue.task not in registered.tasks:
        raise source.error(catalogue.wrong_task_message(registered.name), place)
    try:
        return bind(
            registered,
            parameters,
            task=catalogue.task,
            member_names=member_names,
            fitted=catalogue.fitted,
        )
    except ParameterError as error:
        places = {keyword.arg: keyword.value for keyword in call.keywords} if call else {}
        raise source.error(
            f"policy '{registered.name}': {error}", places.get(error.parameter, place)
        ) from None


class _Compiler:
    """Turns a syntax tree into functions of a ballot.

    Only the kinds of nodes that are handled here are accepted; all others are refused. No part of
    the text is ever evaluated as Python.
    """

    def __init__(self, source: Source, catalogue: Catalogue) -> None:
        self._source = source
        self._catalogue = catalogue

    def condition(self, node: ast.expr, depth: int) -> _Condition:
        """Compile a node that is true or false for each label.

        Args:
            node: the node.
            depth: number of nodes around it.

        Raises:
            PolicyError: the node, or one within it, is not allowed by the grammar or does not fit
                the deployment.
        """
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
        """Compile ``operand >= number`` or ``number <= operand``.

        A chain such as ``0.2 < mean < 0.8`` is the conjunction of its comparisons.
        """
        sides = [node.left, *node.comparators]
        parts = [
            self._single_comparison(left, operator, right)
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return _conjunction(parts)

    def _single_comparison(
        self, left: ast.expr, operator: ast.cmpop, right: ast.expr
    ) -> _Condition:
        """Compile the comparison of one operand with one number."""
        if not isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            raise self._source.error("scores are compared with <, <=, > or >=", right)
        number_is_left = isinstance(left, ast.Constant)
        operand = self._operand(right if number_is_left else left)
        limit = self._limit(left if number_is_left else right)
        is_lower_limit = isinstance(operator, ast.Gt | ast.GtE) != number_is_left
        strict = isinstance(operator, ast.Gt | ast.Lt)

        def compared(ballot: Ballot) -> _Truth:
            scores = operand(ballot).scores
            if is_lower_limit:
                return _Truth(scores > limit if strict else scores >= limit, scores)
            return _Truth(scores < limit if strict else scores <= limit, 1 - scores)

        return compared

    def _limit(self, node: ast.expr) -> float:
        """Read the number that a score is compared with."""
        value = node.value if isinstance(node, ast.Constant) else None
        # To Python, True is an integer; here it is a mistake.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._source.error("a score is compared with a number from 0 to 1", node)
        # The range is checked first, because an integer of some hundred digits overflows a float.
        if not 0 <= value <= 1:
            raise self._source.error("scores lie between 0 and 1, and so must the number", node)
        return float(value)

    def _operand(self, node: ast.expr) -> _Operand:
        """Compile a node that is a member or a policy."""
        if isinstance(node, ast.Name):
            registered = definition(node.id)
            if registered is not None:
                return self._policy(node, registered, None)
            return _member(self._member_name(node, node.id))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == _MEMBER:
                return _member(self._quoted_member(node))
            registered = definition(node.func.id)
            if registered is None:
                message = self._catalogue.unknown_policy_message(node.func.id)
                raise self._source.error(message, node)
            return self._policy(node, registered, node)
        raise self._source.error(
            "not part of an expression; it joins members, policies such as at_least(k=2) and "
            'comparisons such as mean >= 0.7 with and, or, not; write member("name") for a '
            "member whose name is not a plain word",
            node,
        )

    def _policy(self, node: ast.expr, registered: Definition, call: ast.Call | None) -> _Operand:
        """Compile a registered policy over the members that its call names, or over all."""
        names = [self._argument(argument) for argument in call.args] if call else []
        for position, name in enumerate(names):
            if call is not None and name in names[:position]:
                raise self._source.error(f"member {name} is given twice", call.args[position])
        parameters = literal_arguments(self._source, call) if call else {}
        for name in ("min_confidence", "max_disagreement"):
            if name in parameters:
                raise self._source.error(
                    f"{name} goes with a policy alone: inside an expression nothing abstains",
                    node,
                )
        bound = bind_in_text(
            self._source,
            call,
            registered,
            parameters,
            self._catalogue,
            names or self._catalogue.member_names,
        )
        if not names:
            return bound.combine
        return lambda ballot: bound.combine(ballot.select(ballot.indices(names)))

    def _argument(self, node: ast.expr) -> str:
        """Read a positional argument of a policy: the name of a member."""
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
        """Read the name in ``member("name")``."""
        value = call.args[0] if len(call.args) == 1 and not call.keywords else None
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            raise self._source.error('a member is written as member("name")', call)
        return self._member_name(value, value.value)

    def _member_name(self, node: ast.expr, name: str) -> str:
        """Return a name after a check that it is a member; the node is its place in the text."""
        if name not in self._catalogue.member_names:
            policies = self._catalogue.usable_policies()
            raise self._source.error(
                f"'{name}' is neither a member ({', '.join(self._catalogue.member_names)}) nor a "
                f"policy ({', '.join(policies)})"
                f"{nearest(name, [*self._catalogue.member_names, *policies])}",
                node,
            )
        return name


def _member(name: str) -> _Operand:
    """Make the operand that is true where a member votes for the label."""

    def voted(ballot: Ballot) -> Outcome:
        (index,) = ballot.indices([name])
        return Outcome(ballot.scores[index], ballot.votes[index])

    return voted


def _conjunction(parts: Sequence[_Condition]) -> _Condition:
    """Join parts by ``and``; the score is the minimum of their scores."""

    def both(left: _Truth, right: _Truth) -> _Truth:
        return _Truth(left.decisions & right.decisions, torch.minimum(left.scores, right.scores))

    return lambda ballot: reduce(both, (part(ballot) for part in parts))


def _disjunction(parts: Sequence[_Condition]) -> _Condition:
    """Join parts by ``or``; the score is the maximum of their scores."""

    def either(left: _Truth, right: _Truth) -> _Truth:
        return _Truth(left.decisions | right.decisions, torch.maximum(left.scores, right.scores))

    return lambda ballot: reduce(either, (part(ballot) for part in parts))


def _negation(part: _Condition) -> _Condition:
    """Negate a part; its score s becomes 1 - s."""

    def inverted(ballot: Ballot) -> _Truth:
        truth = part(ballot)
        return _Truth(~truth.decisions, 1 - truth.scores)

    return inverted
