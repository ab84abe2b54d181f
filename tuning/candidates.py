"""List the policies that tuning compares, and write each as the text of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..handlers.base.tasks import Task
from .fitting import FittedParameters
from .member_thresholds import per_member_text, per_member_thresholds

_THRESHOLDED = (Task.PRESENCE, Task.MULTILABEL)
_POLICIES = (
    *("any", "all", "majority", "mean", "weighted_mean", "median", "max", "min"),
    *("geometric_mean", "logit_mean", "stacking", "dawid_skene", "per_class_weights"),
)
_CLASSIFICATION_POLICIES = ("plurality", "borda", "weighted_vote")
_REGRESSION_POLICIES = ("mean", "weighted_mean", "median", "stacking")


@dataclass(frozen=True)
class Candidate:
    """A policy, or a single member, whose threshold is to be chosen.

    Attributes:
        name: the name in tables.
        policy: name of a registered policy; empty for a single member.
        parameters: parameters of the policy that stay as they are.
        member: name of the single member; None for a policy.
        swept_parameter: name of the parameter whose value is chosen; None: there is none.
        votes: number of members that have to reach thresholds of their own, which the swept
            parameter ``share`` sets; None: the members have no thresholds of their own.
    """

    name: str
    policy: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    swept_parameter: str | None = None
    votes: int | None = None

    def text(self, value: float | None, fitted: FittedParameters, members: Sequence[str]) -> str:
        """Write the candidate as the text of a policy.

        Args:
            value: value of the swept parameter; None: its default.
            fitted: the parameters that were fitted for the candidate.
            members: names of all members.
        """
        if self.votes is not None:
            assert fitted.negative_quantiles is not None
            share = 0.5 if value is None else value
            thresholds = per_member_thresholds(fitted.negative_quantiles, share)
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
    """List single members, then policies.

    Args:
        task: task of the ensemble.
        members: names of the members.
        has_every_label: whether the data show each label and its absence. If they do not, stacking
            is left out: it learns each label's answer from the data alone, and could never give an
            answer that it has not seen. All other policies start from the members' scores or votes.
    """
    swept_parameter = "threshold" if task in _THRESHOLDED else None
    if task is Task.CLASSIFICATION:
        swept_parameter = "min_confidence"
    member_parameter = swept_parameter if task in _THRESHOLDED else None
    single_members = [
        Candidate(f"member {name}", member=name, swept_parameter=member_parameter)
        for name in members
    ]
    if task is Task.REGRESSION:
        return [*single_members, *(Candidate(name, name) for name in _REGRESSION_POLICIES)]
    names = [*_POLICIES, *(_CLASSIFICATION_POLICIES if task is Task.CLASSIFICATION else ())]
    if task is Task.MULTILABEL:
        names.remove("dawid_skene")
    if not has_every_label:
        names.remove("stacking")
    policies = [Candidate(name, name, swept_parameter=swept_parameter) for name in names]
    for votes in range(2, len(members)):
        name = f"at_least(k={votes})"
        policies.append(Candidate(name, "at_least", {"k": votes}, swept_parameter=swept_parameter))
    if task is Task.PRESENCE and len(members) > 1:
        for votes in range(1, len(members) + 1):
            word = {1: "any", len(members): "all"}.get(votes, f"at_least(k={votes})")
            policies.append(
                Candidate(f"{word}, per-member thresholds", swept_parameter="share", votes=votes)
            )
    return [*single_members, *policies]
