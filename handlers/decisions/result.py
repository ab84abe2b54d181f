"""The result of one request, from which its answer is written in any response format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from ..base.errors import EnsembleError
from ..base.tasks import Task
from ..policies import Ballot, Outcome
from ..policies.uncertainty import Uncertainty
from ..requests.options import AnswerField, RequestOptions
from ..requests.parsing import Sample

DEFAULT_FIELDS = frozenset(AnswerField) - {AnswerField.SCORES, AnswerField.UNCERTAINTY}
"""Fields of an answer to a client that does not choose fields."""


SIDE_KEY = "rollout"
"""Key of `Result.model` that says which side of a canary answered (see the room `rollout`)."""


@dataclass(frozen=True, kw_only=True)
class MembersOfSample:
    """The chosen members that did not answer a sample.

    Attributes:
        failed: name of the member -> why it has no usable scores.
        late: names of members that had not begun to run when the deadline was over.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of a request that the same members answered; a request seldom has more than one.

    Attributes:
        indices: positions of the N samples in the request.
        ballot: scores of the members; None if members ran lazily.
        outcome: scores and decisions of the policy.
        missing: the chosen members that did not answer.
    """

    indices: tuple[int, ...]
    ballot: Ballot | None
    outcome: Outcome
    missing: MembersOfSample = field(default_factory=MembersOfSample)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members whose scores the group has; none if they ran lazily."""
        return self.ballot.member_names if self.ballot is not None else ()


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Decisions smoothed over the samples of a sequence, in the order of time.

    Attributes:
        indices: positions of the N samples in the request.
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
    """

    indices: tuple[int, ...]
    scores: Tensor
    decisions: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that the answer to one request may contain.

    Attributes:
        task: the ensemble's task.
        labels: all labels of the spec; for presence [absent, present].
        score_labels: labels of the C score columns; for presence the second label alone.
        model: name, version and archive digest of the ensemble.
        policy: name and parameters of the policy.
        options: the options that the client set, and the defaults of all others.
        samples: all samples of the request, in order.
        groups: the answered samples, grouped by the members that answered them.
        errors: position in the request -> why that sample has no answer.
        uncertainties: one for each group, if the client wants them.
        smoothed: the decisions over the sequence, if the client wants them.
    """

    task: Task
    labels: tuple[str, ...]
    score_labels: tuple[str, ...]
    model: Mapping[str, str | None]
    policy: Mapping[str, Any]
    options: RequestOptions
    samples: tuple[Sample, ...]
    groups: tuple[Group, ...]
    errors: Mapping[int, EnsembleError]
    uncertainties: tuple[Uncertainty, ...] = ()
    smoothed: Smoothed | None = None

    @cached_property
    def fields(self) -> frozenset[AnswerField]:
        """The parts of the answer that the client wants."""
        fields = DEFAULT_FIELDS if self.options.fields is None else frozenset(self.options.fields)
        return fields | frozenset(self.options.include)

    @property
    def json_row_key(self) -> tuple[object, ...]:
        """A key that is equal for results whose JSON predictions have the same fields."""
        options = self.options
        return self.fields, options.fields is None, options.top_k

    @property
    def answered(self) -> tuple[int, ...]:
        """Positions in the request of the samples that have an answer."""
        return tuple(index for group in self.groups for index in group.indices)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members that answered at least one sample, each once."""
        names = [name for group in self.groups for name in group.member_names]
        return tuple(dict.fromkeys(names))
