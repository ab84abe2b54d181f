"""Compares the decisions of two policies for the same samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..base.tasks import Task
from ..decisions.result import Result
from ..observability.catalogue import MAX_CONFUSED_LABELS, NO_LABEL, OTHER_LABELS, SEVERAL_LABELS

Decision = tuple[str, ...]
"""The labels that a policy chose for a sample, in the order of the spec; empty if it abstained."""


@dataclass(frozen=True)
class Comparison:
    """How the decisions of a candidate differ from those of the current ensemble.

    Attributes:
        num_agreeing: number of samples for which both chose the same labels.
        num_disagreeing: number of the other samples that both decided.
        num_failed: number of samples that only the current ensemble decided.
        confusion: (current label, candidate's label) -> number of samples. A sample without a
            label, or with several, counts under `NO_LABEL` or `SEVERAL_LABELS`.
    """

    num_agreeing: int = 0
    num_disagreeing: int = 0
    num_failed: int = 0
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)


def compare(
    current: Mapping[int, Decision], candidate: Mapping[int, Decision], labels: Sequence[str]
) -> Comparison:
    """Compare two decisions for each sample.

    Args:
        current: position of a sample -> the decision that its client got.
        candidate: position of a sample -> the candidate's decision.
        labels: all labels of the ensemble; the first `MAX_CONFUSED_LABELS` are told apart.
    """
    named = frozenset(labels[:MAX_CONFUSED_LABELS])
    both = [index for index in current if index in candidate]
    num_agreeing = sum(current[index] == candidate[index] for index in both)
    return Comparison(
        num_agreeing,
        len(both) - num_agreeing,
        len(current) - len(both),
        Counter((_cell(current[index], named), _cell(candidate[index], named)) for index in both),
    )


def _cell(decision: Decision, named: frozenset[str]) -> str:
    """Name the row or column of the confusion matrix to which a decision belongs."""
    if len(decision) != 1:
        return SEVERAL_LABELS if decision else NO_LABEL
    return decision[0] if decision[0] in named else OTHER_LABELS


def decisions_of(result: Result) -> dict[int, Decision]:
    """Return the decision for each answered sample of a request, by its position.

    The task must not be a regression, which decides nothing.
    """
    decisions: dict[int, Decision] = {}
    for group in result.groups:
        outcome = group.outcome
        assert outcome.decisions is not None
        abstained = (
            [False] * len(group.indices)
            if outcome.abstained is None
            else outcome.abstained.tolist()
        )
        for index, row, has_abstained in zip(
            group.indices, outcome.decisions, abstained, strict=True
        ):
            chosen = tuple(result.score_labels[each] for each in row.nonzero().flatten().tolist())
            if not chosen and result.task is Task.PRESENCE and not has_abstained:
                chosen = (result.labels[0],)
            decisions[index] = chosen
    return decisions
