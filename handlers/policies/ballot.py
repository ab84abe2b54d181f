"""The input and the output of every policy.

A `Panel` describes the members that vote. A `Ballot` is a panel together with the members' scores
for some samples. A policy turns a ballot into an `Outcome`, which has one answer for each sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from ..base.errors import MemberError, PolicyError
from ..base.tasks import Task

ALL_TASKS = frozenset(Task)
"""Every task, for policies that also combine the numbers of a regression."""

LABEL_TASKS = frozenset({Task.CLASSIFICATION, Task.PRESENCE, Task.MULTILABEL})
"""Tasks whose answer is a choice of labels, as opposed to the numbers of a regression."""

THRESHOLD_TASKS = frozenset({Task.PRESENCE, Task.MULTILABEL})
"""Tasks that compare the score of each label with a threshold, independently of other labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """The M members of a vote, with their weights and thresholds, before any scores are known.

    Attributes:
        task: the kind of answer that the ensemble gives.
        member_names: M names, all different.
        weights: (M,) float32 voting weights, finite and not negative.
        member_thresholds: (M, C) float32 per-member thresholds. For presence and multilabel, a
            member votes for a label if its score for the label is at least the threshold.
            Classification does not use them, because each member votes for its best label.
        thresholds: (C,) float32 thresholds for the combined scores (presence and multilabel).

    Raises:
        ValueError: the shapes do not fit together, a name occurs twice, or a weight is negative or
            not finite.
    """

    task: Task
    member_names: tuple[str, ...]
    weights: Tensor
    member_thresholds: Tensor
    thresholds: Tensor

    def __post_init__(self) -> None:
        members, labels = len(self.member_names), len(self.thresholds)
        if members == 0 or len(set(self.member_names)) != members:
            raise ValueError(
                f"a panel needs at least one member, and no name twice, not {self.member_names}"
            )
        _check_shape("weights", self.weights, (members,))
        _check_shape("member_thresholds", self.member_thresholds, (members, labels))
        if not all(0 <= weight < inf for weight in self.weights.tolist()):
            raise ValueError(f"voting weights must be finite and not negative: {self.weights}")

    def ballot(self, scores: Tensor, logits: Tensor | None = None) -> Ballot:
        """Make the ballot of this panel's members from their scores.

        Args:
            scores: (M, N, C) float32, see `Ballot.scores`.
            logits: (M, N, C) float32, or None, see `Ballot.logits`.

        Raises:
            MemberError: a score is NaN or infinite.
            ValueError: the shapes do not fit the panel.
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
        """Look up the positions of the named members on this panel.

        Raises:
            PolicyError: the panel has no member of one of the names.
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
    """A panel together with its members' scores for N samples: the input of every policy.

    Attributes:
        scores: (M members, N samples, C score labels) float32, all finite. For classification,
            each member's scores are probabilities that add up to 1 over C. For presence, C is 1
            and the score is the probability that the positive label is present. For multilabel,
            the scores are C independent probabilities. For regression, they are C values.
        logits: (M, N, C) float32 logits after temperature scaling; None unless every member gives
            logits.

    Raises:
        MemberError: a score is NaN or infinite. Comparisons with NaN are false, so that NaN would
            silently count as a vote against a label. The caller must leave such members or samples
            out before it makes the ballot.
        ValueError: as for `Panel`, or the shape of the scores does not fit the panel.
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
            is_finite = finite.flatten(1).all(dim=1).tolist()
            names = [name for name, ok in zip(self.member_names, is_finite, strict=True) if not ok]
            raise MemberError(
                f"the scores of member {', '.join(names)} are not finite numbers; leave the member "
                "or the sample out before combining"
            )

    @cached_property
    def votes(self) -> Tensor:
        """(M, N, C) bool: whether each member votes for each label of each sample.

        A member of a classification votes for its highest-scoring label only; on a tie, for the
        label of lowest index. A member of a presence or multilabel ensemble votes for every label
        whose score reaches the member's threshold.

        Raises:
            ValueError: the task is regression, whose members do not vote.
        """
        if self.task is Task.REGRESSION:
            raise ValueError("members of a regression do not vote")
        if self.task is Task.CLASSIFICATION:
            return one_hot(self.scores)
        return self.scores >= self.member_thresholds.unsqueeze(1)

    def select(self, members: Sequence[int]) -> Ballot:
        """Make a ballot of only the members at the given positions, in the given order."""
        indices = torch.as_tensor(list(members), dtype=torch.long, device=self.scores.device)
        return replace(
            self,
            member_names=tuple(self.member_names[index] for index in members),
            weights=self.weights[indices],
            member_thresholds=self.member_thresholds[indices],
            scores=self.scores[indices],
            logits=None if self.logits is None else self.logits[indices],
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers of a policy for N samples.

    Attributes:
        scores: (N, C) float32 combined scores.
        decisions: (N, C) bool, true for each label that the policy chooses; None for regression.
            Most policies choose exactly one label for each sample of a classification. Policies
            that count votes, such as `any` and `all`, may choose several labels or none, and a
            policy that abstains chooses none.
        abstained: (N,) bool, true for each sample on which the policy abstained; None for a policy
            that never abstains.
        spread: measures of how far the members' values lie apart, name -> (N, C) float32; empty
            unless the task is regression.
        members_used: (N,) int64, number of members whose scores the answer is computed from; None
            if all members were used for every sample.
    """

    scores: Tensor
    decisions: Tensor | None
    abstained: Tensor | None = None
    spread: Mapping[str, Tensor] = field(default_factory=dict)
    members_used: Tensor | None = None


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Concatenate outcomes of one policy for different samples into one outcome.

    Args:
        outcomes: at least one; their samples follow each other in the given order.
    """

    def concatenated(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    return Outcome(
        scores=torch.cat([outcome.scores for outcome in outcomes]),
        decisions=concatenated([outcome.decisions for outcome in outcomes]),
        abstained=concatenated([outcome.abstained for outcome in outcomes]),
        spread={
            name: torch.cat([outcome.spread[name] for outcome in outcomes])
            for name in outcomes[0].spread
        },
        members_used=concatenated([outcome.members_used for outcome in outcomes]),
    )


def rows_of(outcome: Outcome, rows: slice | Tensor) -> Outcome:
    """Select some samples of an outcome.

    Args:
        outcome: the answers for N samples.
        rows: a slice of the N samples, or a tensor that indexes them.
    """

    def selected(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return Outcome(
        scores=outcome.scores[rows],
        decisions=selected(outcome.decisions),
        abstained=selected(outcome.abstained),
        spread={name: values[rows] for name, values in outcome.spread.items()},
        members_used=selected(outcome.members_used),
    )


def one_hot(scores: Tensor) -> Tensor:
    """Mark the largest value of the last dimension; on a tie, the one of lowest index.

    Returns:
        A bool tensor of the same shape.
    """
    best = scores.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def kth_largest(scores: Tensor, *ranks: int) -> list[Tensor]:
    """For each rank k, find the k-th largest value over the first dimension; rank 1 is the largest.

    Returns:
        One tensor for each rank, with the shape of `scores` without its first dimension.
    """
    if all(rank in (1, len(scores)) for rank in ranks):
        # A maximum or a minimum needs no sorting, which takes a hundred times as long.
        return [scores.amax(dim=0) if rank == 1 else scores.amin(dim=0) for rank in ranks]
    descending = scores.sort(dim=0, descending=True).values
    return [descending[rank - 1] for rank in ranks]


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a tensor has another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
