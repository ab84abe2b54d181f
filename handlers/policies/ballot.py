"""What the members say, and what a policy makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from ..base.errors import MemberError, PolicyError
from ..base.tasks import Task

DECIDING = frozenset({Task.CLASSIFICATION, Task.PRESENCE, Task.MULTILABEL})
"""Tasks whose answer is a choice of labels."""

THRESHOLDED = frozenset({Task.PRESENCE, Task.MULTILABEL})
"""Tasks that choose each label by itself, from a threshold on."""

ALL_TASKS = frozenset(Task)


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """The members and how they vote: everything about a ballot but the scores.

    Attributes:
        task: the kind of answer.
        member_names: M names, all different.
        weights: (M,) float32 voting weights, none below 0.
        member_thresholds: (M, C) float32: a member votes for a label from this score on (presence,
            multilabel). Classification does not use it: there a member votes for its best label.
        thresholds: (C,) float32: decision thresholds on combined scores (presence, multilabel).
    """

    task: Task
    member_names: tuple[str, ...]
    weights: Tensor
    member_thresholds: Tensor
    thresholds: Tensor

    def __post_init__(self) -> None:
        members, labels = len(self.member_names), len(self.thresholds)
        if members == 0 or len(set(self.member_names)) != members:
            raise ValueError(f"member names must be different and not none: {self.member_names}")
        _check_shape("weights", self.weights, (members,))
        _check_shape("member_thresholds", self.member_thresholds, (members, labels))
        if not all(0 <= weight < inf for weight in self.weights.tolist()):
            raise ValueError(f"voting weights must be finite and not negative: {self.weights}")

    def ballot(self, scores: Tensor, logits: Tensor | None = None) -> Ballot:
        """The panel with what its members say.

        Args:
            scores: (M, N, C) float32.
            logits: same shape, or None.
        """
        return Ballot(
            task=self.task,
            member_names=self.member_names,
            weights=self.weights,
            member_thresholds=self.member_thresholds,
            thresholds=self.thresholds,
            scores=scores,
            logits=logits,
        )

    def indices(self, names: Sequence[str]) -> list[int]:
        """Positions of members.

        Raises:
            PolicyError: a member of that name is not on the panel.
        """
        missing = [name for name in names if name not in self.member_names]
        if missing:
            raise PolicyError(
                f"the policy needs member {', '.join(missing)}, which gave no scores for this "
                f"request; choose a policy over {', '.join(self.member_names)}"
            )
        return [self.member_names.index(name) for name in names]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ballot(Panel):
    """What the members say about one request's samples.

    Attributes:
        scores: (M members, N samples, C score labels) float32, finite. Classification:
            probabilities that add up to 1 over C. Presence: C = 1, the probability that the
            positive label is present. Multilabel: C independent probabilities. Regression: values.
        logits: (M, N, C) float32, temperature-scaled, where every member gives logits; else None.

    Raises:
        MemberError: a score is NaN or infinite. A NaN must never pass as a vote, so such samples or
            members are left out before the ballot is made.
        ValueError: the shapes do not fit together.
    """

    scores: Tensor
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        samples = self.scores.shape[1] if self.scores.dim() == 3 else -1
        shape = (len(self.member_names), samples, len(self.thresholds))
        _check_shape("scores", self.scores, shape)
        if self.logits is not None:
            _check_shape("logits", self.logits, shape)
        finite = self.scores.isfinite()
        if not bool(finite.all()):
            flags = finite.flatten(1).all(dim=1).tolist()
            names = [n for n, good in zip(self.member_names, flags, strict=True) if not good]
            raise MemberError(
                f"the scores of member {', '.join(names)} are not finite numbers; leave the member "
                "or the sample out before combining"
            )

    @cached_property
    def votes(self) -> Tensor:
        """(M, N, C) bool: classification votes for its best label, the lowest index on a tie."""
        if self.task is Task.REGRESSION:
            raise ValueError("members of a regression do not vote")
        if self.task is Task.CLASSIFICATION:
            return one_hot(self.scores)
        return self.scores >= self.member_thresholds.unsqueeze(1)

    def select(self, members: Sequence[int]) -> Ballot:
        """The ballot of some members only, in the given order."""
        chosen = torch.as_tensor(list(members), dtype=torch.long, device=self.scores.device)
        return replace(
            self,
            member_names=tuple(self.member_names[index] for index in members),
            weights=self.weights[chosen],
            member_thresholds=self.member_thresholds[chosen],
            scores=self.scores[chosen],
            logits=None if self.logits is None else self.logits[chosen],
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """One answer for each sample.

    Attributes:
        scores: (N, C) float32 combined scores.
        decisions: (N, C) bool, the labels chosen; None for regression. Classification normally has
            one in a row; none where the policy abstained or the members did not agree, several
            where `any` found several.
        abstained: (N,) bool; None for a policy that always decides.
        spread: name -> (N, C) float32, how far the members lie apart; regression only.
        members_used: (N,) int64, how many members the answer rests on; None means all.
    """

    scores: Tensor
    decisions: Tensor | None
    abstained: Tensor | None = None
    spread: Mapping[str, Tensor] = field(default_factory=dict)
    members_used: Tensor | None = None


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of one policy, one after the other."""

    def together(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    return Outcome(
        scores=torch.cat([outcome.scores for outcome in outcomes]),
        decisions=together([outcome.decisions for outcome in outcomes]),
        abstained=together([outcome.abstained for outcome in outcomes]),
        spread={
            name: torch.cat([outcome.spread[name] for outcome in outcomes])
            for name in outcomes[0].spread
        },
        members_used=together([outcome.members_used for outcome in outcomes]),
    )


def rows_of(outcome: Outcome, rows: slice | Tensor) -> Outcome:
    """Some of an outcome's samples."""

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return Outcome(
        scores=outcome.scores[rows],
        decisions=part(outcome.decisions),
        abstained=part(outcome.abstained),
        spread={name: values[rows] for name, values in outcome.spread.items()},
        members_used=part(outcome.members_used),
    )


def one_hot(scores: Tensor) -> Tensor:
    """Bool of the same shape, true at the largest of the last dimension, lowest index on a tie."""
    best = scores.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def largest(scores: Tensor, *ranks: int) -> list[Tensor]:
    """For each rank k the k-th largest over the first dimension, the largest one for 1."""
    if all(rank in (1, len(scores)) for rank in ranks):
        # Sorting takes a hundred times as long.
        return [scores.amax(dim=0) if rank == 1 else scores.amin(dim=0) for rank in ranks]
    descending = scores.sort(dim=0, descending=True).values
    return [descending[rank - 1] for rank in ranks]


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
