"""The policies that tuning measures, and how each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..handlers.base.tasks import Task
from .fitting import Learned
from .member_thresholds import per_member_text, per_member_thresholds

_THRESHOLDED = (Task.PRESENCE, Task.MULTILABEL)
_PLAIN = (
    *("any", "all", "majority", "mean", "weighted_mean", "median", "max", "min"),
    *("geometric_mean", "logit_mean", "stacking", "dawid_skene", "per_class_weights"),
)
_OF_CLASSES = ("plurality", "borda", "weighted_vote")
_OF_VALUES = ("mean", "weighted_mean", "median", "stacking")


@dataclass(frozen=True)
class Candidate:
    """A policy whose operating point is to be found.

    Attributes:
        name: for tables.
        policy: name of a registered policy; empty for a member alone.
        parameters: fixed ones.
        member: the member, for a single one.
        swept_parameter: name of the parameter whose value is chosen; None: it has none.
        votes: how many members have to reach thresholds of their own, which ``share`` sets.
    """

    name: str
    policy: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    swept_parameter: str | None = None
    votes: int | None = None

    def text(self, value: float | None, learned: Learned, members: Sequence[str]) -> str:
        """Write the candidate as a policy's text, with a value of its swept parameter."""
        if self.votes is not None:
            assert learned.levels is not None
            thresholds = per_member_thresholds(learned.levels, 0.5 if value is None else value)
            return per_member_text(members, thresholds, self.votes)
        if self.member is not None:
            text = f'member("{self.member}")'
            return text if value is None else f"{text} >= {value:g}"
        parameters = dict(self.parameters)
        if self.swept_parameter is not None and value is not None:
            parameters[self.swept_parameter] = value
        written = ", ".join(f"{name}={number:g}" for name, number in parameters.items())
        return f"{self.policy}({written})" if written else self.policy


def candidates(
    task: Task, members: Sequence[str], *, has_every_label: bool = True
) -> list[Candidate]:
    """Members alone, then policies.

    Args:
        task: of the ensemble.
        members: their names.
        has_every_label: whether the data show each label and its absence. Where they do not,
            stacking is left out: it learns each label's answer from scratch, and could never give
            one that it has not seen. The other policies start from the members' scores or votes.
    """
    swept_parameter = "threshold" if task in _THRESHOLDED else None
    if task is Task.CLASSIFICATION:
        swept_parameter = "min_confidence"
    member_parameter = swept_parameter if task in _THRESHOLDED else None
    alone = [
        Candidate(f"member {name}", member=name, swept_parameter=member_parameter)
        for name in members
    ]
    if task is Task.REGRESSION:
        return [*alone, *(Candidate(name, name) for name in _OF_VALUES)]
    names = [*_PLAIN, *(_OF_CLASSES if task is Task.CLASSIFICATION else ())]
    if task is Task.MULTILABEL:
        names.remove("dawid_skene")
    if not has_every_label:
        names.remove("stacking")
    found = [Candidate(name, name, swept_parameter=swept_parameter) for name in names]
    for votes in range(2, len(members)):
        name = f"at_least(k={votes})"
        found.append(Candidate(name, "at_least", {"k": votes}, swept_parameter=swept_parameter))
    if task is Task.PRESENCE and len(members) > 1:
        for votes in range(1, len(members) + 1):
            word = {1: "any", len(members): "all"}.get(votes, f"at_least(k={votes})")
            found.append(
                Candidate(f"{word}, per-member thresholds", swept_parameter="share", votes=votes)
            )
    return [*alone, *found]
