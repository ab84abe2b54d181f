"""Policies that combine the members' scores.

`decide` turns the combined scores into answers. For classification, it chooses the label with the
highest combined score; on a tie, the label of lowest index. For presence and multilabel, it chooses
every label whose combined score reaches the label's threshold. For regression, the combined values
are the answer, and `decide` adds measures of how far the members' values lie apart.

Sums are computed in float64 and rounded to float32. The order of the members can then change the
combined scores only in the rare case that float64 rounding crosses a float32 rounding boundary.
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

# The smallest positive normal float32, which stands for a probability of 0 in a logarithm. A member
# can then still veto a label in a product, but members that together veto every label do not end in
# 0 / 0.
_SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny

Buckets = Annotated[
    int, Field(ge=1, description="Number of groups of consecutive members"), AtMostMembers()
]


def decide(ballot: Ballot, combined: Tensor) -> Outcome:
    """Turn combined scores into answers, by the rules in this module's docstring.

    Args:
        ballot: the ballot from which the scores were combined. The task, the thresholds and, for
            regression, the members' values are taken from it.
        combined: (N, C) combined scores, of any floating type.
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
    """The mean of the members' scores, weighted by the members' voting weights."""
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
        Field(
            ge=0,
            lt=0.5,
            allow_inf_nan=False,
            description="Share of the members left out at each end, rounded down",
        ),
    ] = 0.2,
) -> Outcome:
    """The mean of the members' scores without the lowest and the highest scores."""
    left_out = int(fraction * len(ballot.scores))
    ordered = ballot.scores.double().sort(dim=0).values
    return decide(ballot, ordered[left_out : len(ordered) - left_out].mean(dim=0))


@policy("max", tasks=ALL_TASKS)
def maximum(ballot: Ballot) -> Outcome:
    """The highest of the members' scores."""
    return decide(ballot, ballot.scores.amax(dim=0))


@policy("min", tasks=ALL_TASKS)
def minimum(ballot: Ballot) -> Outcome:
    """The lowest of the members' scores."""
    return decide(ballot, ballot.scores.amin(dim=0))


@policy("geometric_mean", tasks=LABEL_TASKS)
def geometric_mean(ballot: Ballot) -> Outcome:
    """The geometric mean of the members' scores; for classification normalised to a sum of 1.

    Source: Genest & Zidek (1986), the logarithmic opinion pool.
    """
    logarithms = _log(ballot.scores).mean(dim=0)
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, logarithms.softmax(dim=-1))
    # One score of 0 makes the result exactly 0, not a power of the smallest float.
    vetoed = (ballot.scores <= 0).any(dim=0)
    return decide(ballot, logarithms.exp().masked_fill(vetoed, 0))


@policy("product", tasks=LABEL_TASKS)
def product(ballot: Ballot) -> Outcome:
    """The product of the members' scores, normalised: the members are independent evidence."""
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, _log(ballot.scores).sum(dim=0).softmax(dim=-1))
    return decide(
        ballot, (_log(ballot.scores) - _log(1 - ballot.scores.double())).sum(dim=0).sigmoid()
    )


@policy("logit_mean", tasks=LABEL_TASKS)
def logit_mean(ballot: Ballot) -> Outcome:
    """The mean of the members' logits, turned back into probabilities."""
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
    """The members are divided into buckets; the mean of the highest score in each bucket."""
    highest = [scores.amax(dim=0) for scores in _split(ballot, buckets)]
    return decide(ballot, torch.stack(highest).mean(dim=0))


@policy("maximum_of_average", tasks=LABEL_TASKS)
def maximum_of_average(ballot: Ballot, *, buckets: Buckets) -> Outcome:
    """The members are divided into buckets; the highest of the buckets' mean scores."""
    means = [scores.mean(dim=0) for scores in _split(ballot, buckets)]
    return decide(ballot, torch.stack(means).amax(dim=0))


@policy("borda", tasks=frozenset({Task.CLASSIFICATION}))
def borda(ballot: Ballot) -> Outcome:
    """Borda count: the mean share of labels that a member ranks lower; equal ones count half."""
    # The scores of one member at a time fit into the cache. The sum is exact, because ranks are
    # multiples of 1/2.
    points = torch.zeros(ballot.scores.shape[1:], dtype=torch.float64)
    for scores in ballot.scores.numpy(force=True):
        points += torch.from_numpy(_ranks(scores))
    share = points / len(ballot.scores) / max(ballot.scores.shape[-1] - 1, 1)
    return decide(ballot, share.to(ballot.scores.device))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Count, for each value, the lower values in the last dimension; each equal value counts half.

    NumPy sorts many times faster than torch on the CPU.

    Returns:
        float64 of the same shape.
    """
    places = scores.argsort(axis=-1)
    ordered = np.take_along_axis(scores, places, axis=-1)
    # Whether a run of equal values begins at each position; its last entry ends the last run.
    begins = np.ones((*scores.shape[:-1], scores.shape[-1] + 1), dtype=bool)
    begins[..., 1:-1] = ordered[..., 1:] != ordered[..., :-1]
    # The first and the last position of the run to which each value belongs.
    position = np.arange(scores.shape[-1])
    first = np.maximum.accumulate(np.where(begins[..., :-1], position, 0), axis=-1)
    backwards = np.where(begins[..., 1:], position, scores.shape[-1])[..., ::-1]
    last = np.minimum.accumulate(backwards, axis=-1)[..., ::-1]
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, places, (first + last) / 2, axis=-1)
    return ranks


def _log(probabilities: Tensor) -> Tensor:
    """Compute logarithms in float64 that are finite for a probability of 0, too."""
    return probabilities.double().clamp(min=_SMALLEST_PROBABILITY).log()


def _split(ballot: Ballot, buckets: int) -> tuple[Tensor, ...]:
    """Split the members into consecutive buckets of equal size, or the first ones larger by 1.

    Returns:
        For each bucket the scores of its members: (members, N, C) float64.
    """
    return ballot.scores.double().tensor_split(buckets)


def _spread(values: Tensor) -> dict[str, Tensor]:
    """Measure how far the members' values lie apart.

    Args:
        values: (M, N, C) float64.

    Returns:
        Name of the measure -> (N, C) float32.
    """
    ordered = values.sort(dim=0).values
    deviations = values - values.mean(dim=0)
    return {
        "standard_deviation": deviations.square().mean(dim=0).sqrt().float(),
        "quantile_05": _quantile(ordered, 0.05).float(),
        "quantile_95": _quantile(ordered, 0.95).float(),
    }


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Compute a quantile over the first dimension, linear between neighbours.

    Source: Hyndman & Fan (1996), type 7.

    Args:
        ordered: (M, N, C), ascending over M.
        share: the quantile as a share, 0.5 for the median.
    """
    position = (len(ordered) - 1) * share
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return torch.lerp(ordered[lower], ordered[upper], position - lower)
