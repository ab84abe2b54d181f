"""The policies that tuning measures, and how each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..handlers.base.tasks import Task
from .fitting import Learned
from .member_thresholds import own_text, own_thresholds

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
        dial: the parameter that is tuned; None: nothing is.
        votes: how many members have to reach thresholds of their own, which ``share`` sets.
    """

    name: str
    policy: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    dial: str | None = None
    votes: int | None = None

    def text(self, value: float | None, learned: Learned, members: Sequence[str]) -> str:
        """As a spec writes it, with the dial at a value."""
        if self.votes is not None:
            assert learned.levels is not None
            thresholds = own_thresholds(learned.levels, 0.5 if value is None else value)
            return own_text(members, thresholds, self.votes)
        if self.member is not None:
            text = f'member("{self.member}")'
            return text if value is None else f"{text} >= {value:g}"
        parameters = dict(self.parameters)
        if self.dial is not None and value is not None:
            parameters[self.dial] = value
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
    dial = "threshold" if task in _THRESHOLDED else None
    if task is Task.CLASSIFICATION:
        dial = "min_confidence"
    alone = [
        Candidate(f"member {name}", member=name, dial=dial if task in _THRESHOLDED else None)
        for name in members
    ]
    if task is Task.REGRESSION:
        return [*alone, *(Candidate(name, name) for name in _OF_VALUES)]
    names = [*_PLAIN, *(_OF_CLASSES if task is Task.CLASSIFICATION else ())]
    if task is Task.MULTILABEL:
        names.remove("dawid_skene")
    if not has_every_label:
        names.remove("stacking")
    found = [Candidate(name, name, dial=dial) for name in names]
    for votes in range(2, len(members)):
        name = f"at_least(k={votes})"
        found.append(Candidate(name, "at_least", {"k": votes}, dial=dial))
    if task is Task.PRESENCE and len(members) > 1:
        for votes in range(1, len(members) + 1):
            word = {1: "any", len(members): "all"}.get(votes, f"at_least(k={votes})")
            found.append(Candidate(f"{word}, own thresholds", dial="share", votes=votes))
    return [*alone, *found]
