"""Policies that combine the members' scores.

Classification chooses the label with the highest combined score, the lowest index on a tie;
presence and multilabel choose every label whose combined score reaches its threshold; regression
gives the combined values and how far the members lie apart. Sums run in float64, so that the order
of the members does not show in float32.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..base.tasks import Task
from .ballot import ALL_TASKS, LABEL_TASKS, Ballot, Outcome, one_hot
from .registry import AtMostMembers, policy
from .votes import positive_weights

# The smallest normal float32: a probability of 0 weighs heavily in a product, yet members that
# together rule out every label do not end in 0 / 0.
_SMALLEST = torch.finfo(torch.float32).tiny

Buckets = Annotated[int, Field(ge=1, description="Groups of consecutive members"), AtMostMembers()]


def decide(ballot: Ballot, combined: Tensor) -> Outcome:
    """The outcome of combined scores, as this module's docstring says.

    Args:
        ballot: what the members say.
        combined: (N, C), any floating type.
    """
    scores = combined.float()
    if ballot.task is Task.REGRESSION:
        return Outcome(scores, None, spread=_spread(ballot.scores.double()))
    if ballot.task is Task.CLASSIFICATION:
        return Outcome(scores, one_hot(scores))
    return Outcome(scores, scores >= ballot.thresholds)


@policy("mean", tasks=ALL_TASKS)
def mean(ballot: Ballot) -> Outcome:
    """The mean of the members' scores (soft voting)."""
    return decide(ballot, ballot.scores.double().mean(dim=0))


@policy("weighted_mean", tasks=ALL_TASKS)
def weighted_mean(ballot: Ballot) -> Outcome:
    """The mean of the members' scores, each with its member's voting weight."""
    weights = positive_weights(ballot).double()
    total = torch.einsum("m,mnc->nc", weights, ballot.scores.double())
    return decide(ballot, total / weights.sum())


@policy("median", tasks=ALL_TASKS)
def median(ballot: Ballot) -> Outcome:
    """The median of the members' scores; for an even number the mean of the middle two."""
    ordered = ballot.scores.double().sort(dim=0).values
    return decide(ballot, _quantile(ordered, 0.5))


@policy("trimmed_mean", tasks=ALL_TASKS)
def trimmed_mean(
    ballot: Ballot,
    *,
    fraction: Annotated[
        float,
        Field(ge=0, lt=0.5, allow_inf_nan=False, description="Left out at each end, rounded down"),
    ] = 0.2,
) -> Outcome:
    """The mean without the lowest and the highest scores."""
    left_out = int(fraction * len(ballot.scores))
    ordered = ballot.scores.double().sort(dim=0).values
    return decide(ballot, ordered[left_out : len(ordered) - left_out].mean(dim=0))


@policy("max", tasks=ALL_TASKS)
def maximum(ballot: Ballot) -> Outcome:
    """The members' highest score."""
    return decide(ballot, ballot.scores.amax(dim=0))


@policy("min", tasks=ALL_TASKS)
def minimum(ballot: Ballot) -> Outcome:
    """The members' lowest score."""
    return decide(ballot, ballot.scores.amin(dim=0))


@policy("geometric_mean", tasks=LABEL_TASKS)
def geometric_mean(ballot: Ballot) -> Outcome:
    """The geometric mean; for classification brought to a sum of 1 (logarithmic opinion pool)."""
    logarithms = _log(ballot.scores).mean(dim=0)
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, logarithms.softmax(dim=-1))
    # A score of 0 comes back as 0, not as the smallest float.
    vetoed = (ballot.scores <= 0).any(dim=0)
    return decide(ballot, logarithms.exp().masked_fill(vetoed, 0))


@policy("product", tasks=LABEL_TASKS)
def product(ballot: Ballot) -> Outcome:
    """The product, brought to a sum of 1: the members as independent evidence."""
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, _log(ballot.scores).sum(dim=0).softmax(dim=-1))
    return decide(
        ballot, (_log(ballot.scores) - _log(1 - ballot.scores.double())).sum(dim=0).sigmoid()
    )


@policy("logit_mean", tasks=LABEL_TASKS)
def logit_mean(ballot: Ballot) -> Outcome:
    """The mean of the logits, turned back into probabilities."""
    if ballot.task is Task.CLASSIFICATION:
        logits = _log(ballot.scores) if ballot.logits is None else ballot.logits.double()
        return decide(ballot, logits.mean(dim=0).softmax(dim=-1))
    if ballot.logits is None:
        logits = _log(ballot.scores) - _log(1 - ballot.scores.double())
    else:
        logits = ballot.logits.double()
    return decide(ballot, logits.mean(dim=0).sigmoid())


@policy("average_of_maximum", tasks=LABEL_TASKS)
def average_of_maximum(ballot: Ballot, *, buckets: Buckets) -> Outcome:
    """The mean over buckets of members of each bucket's highest score."""
    return decide(ballot, torch.stack([b.amax(dim=0) for b in _split(ballot, buckets)]).mean(dim=0))


@policy("maximum_of_average", tasks=LABEL_TASKS)
def maximum_of_average(ballot: Ballot, *, buckets: Buckets) -> Outcome:
    """The highest over buckets of members of each bucket's mean score."""
    return decide(ballot, torch.stack([b.mean(dim=0) for b in _split(ballot, buckets)]).amax(dim=0))


@policy("borda", tasks=frozenset({Task.CLASSIFICATION}))
def borda(ballot: Ballot) -> Outcome:
    """Borda count: the mean share of labels that each member ranks below; ties count half."""
    # One member at a time stays in the cache; sums of halves are exact.
    points = torch.zeros(ballot.scores.shape[1:], dtype=torch.float64)
    for scores in ballot.scores.numpy(force=True):
        points += torch.from_numpy(_ranks(scores))
    share = points / len(ballot.scores) / max(ballot.scores.shape[-1] - 1, 1)
    return decide(ballot, share.to(ballot.scores.device))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """How many values of the last dimension are lower, equal ones counted half; float64.

    By NumPy, whose sort is many times faster than torch's on the CPU.
    """
    places = scores.argsort(axis=-1)
    ordered = np.take_along_axis(scores, places, axis=-1)
    new = np.ones((*scores.shape[:-1], scores.shape[-1] + 1), dtype=bool)
    new[..., 1:-1] = ordered[..., 1:] != ordered[..., :-1]
    # Of each run of equal values the first and the last place.
    position = np.arange(scores.shape[-1])
    first = np.maximum.accumulate(np.where(new[..., :-1], position, 0), axis=-1)
    backwards = np.where(new[..., 1:], position, scores.shape[-1])[..., ::-1]
    last = np.minimum.accumulate(backwards, axis=-1)[..., ::-1]
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, places, (first + last) / 2, axis=-1)
    return ranks


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.double().clamp(min=_SMALLEST).log()


def _split(ballot: Ballot, buckets: int) -> tuple[Tensor, ...]:
    """Consecutive members in buckets whose sizes differ by one at most, the larger ones first."""
    return ballot.scores.double().tensor_split(buckets)


def _spread(values: Tensor) -> dict[str, Tensor]:
    """How far the members' values (M, N, C) lie apart."""
    ordered = values.sort(dim=0).values
    deviations = values - values.mean(dim=0)
    return {
        "standard_deviation": deviations.square().mean(dim=0).sqrt().float(),
        "quantile_05": _quantile(ordered, 0.05).float(),
        "quantile_95": _quantile(ordered, 0.95).float(),
    }


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Quantile over the first dimension, linear between neighbours (Hyndman & Fan 1996, type 7)."""
    position = (len(ordered) - 1) * share
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return torch.lerp(ordered[lower], ordered[upper], position - lower)
