"""The members' scores for a batch, and why a member has none for a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from ..observability.timeline import MemberCall


class State(IntEnum):
    """What one member did with one sample."""

    NOT_SELECTED = 0
    ANSWERED = 1
    FAILED = 2
    LATE = 3


@dataclass
class MemberScores:
    """The members' scores for a batch, as tensors on the CPU.

    Attributes:
        scores: (M members, N samples, C score labels) float32; NaN where a member gave no answer.
        logits: same shape; NaN where a member gave no logits.
        states: (M, N) uint8, each a value of `State`.
        reasons: (member, sample) -> why the member failed on the sample.
        calls: the calls that computed the scores, for metrics and traces.
    """

    scores: Tensor
    logits: Tensor
    states: Tensor
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)
    calls: list[MemberCall] = field(default_factory=list)

    @classmethod
    def empty(cls, num_members: int, num_samples: int, num_labels: int) -> MemberScores:
        """Make the scores of a batch before any member has run: NaN, and `State.NOT_SELECTED`.

        Args:
            num_members: number of members of the ensemble, M.
            num_samples: number of samples in the batch, N.
            num_labels: number of score labels, C.
        """
        shape = (num_members, num_samples, num_labels)
        return cls(
            scores=torch.full(shape, float("nan")),
            logits=torch.full(shape, float("nan")),
            states=torch.zeros(shape[:2], dtype=torch.uint8),
        )

    def fail(self, member: int, samples: Tensor, reason: str) -> None:
        """Record that a member failed on some samples.

        Args:
            member: position of the member in the ensemble.
            samples: (n,) int64 positions of the samples in the batch.
            reason: why it failed.
        """
        self.states[member, samples] = State.FAILED
        self.reasons |= dict.fromkeys(((member, sample) for sample in samples.tolist()), reason)
