"""What is known about one request before its answer is written."""

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


@dataclass(frozen=True, kw_only=True)
class MembersOfSample:
    """Which members one sample's answer rests on.

    Attributes:
        failed: member -> why its scores could not be used.
        late: members that had not begun when the deadline was over.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of a request that the same members answered; a request seldom has more than one.

    Attributes:
        indices: positions of the N samples in the request.
        ballot: what the members say about them; None where members ran only as far as needed.
        outcome: what the policy makes of it.
        missing: the members that did not take part.
    """

    indices: tuple[int, ...]
    ballot: Ballot | None
    outcome: Outcome
    missing: MembersOfSample = field(default_factory=MembersOfSample)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Members whose own answers are known."""
        return self.ballot.member_names if self.ballot is not None else ()


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Decisions over a sequence, as `Outcome`, one row for each of `indices`, in time's order."""

    indices: tuple[int, ...]
    scores: Tensor
    decisions: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that is known about one request before it is written down.

    Attributes:
        model: name, version and archive digest.
        policy: name and parameters of the policy.
        samples: all samples of the request, in order.
        errors: position -> why that sample has no answer.
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
        """What the client asked for."""
        asked = DEFAULT_FIELDS if self.options.fields is None else frozenset(self.options.fields)
        return asked | frozenset(self.options.include)

    @property
    def written_together_key(self) -> tuple[object, ...]:
        """Equal for results whose `predictions` can be written together."""
        options = self.options
        return self.fields, options.fields is None, options.top_k

    @property
    def answered(self) -> tuple[int, ...]:
        """Positions of the samples that have an answer."""
        return tuple(index for group in self.groups for index in group.indices)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Members that answered at least one sample, in the deployment's order."""
        names = [name for group in self.groups for name in group.member_names]
        return tuple(dict.fromkeys(names))
