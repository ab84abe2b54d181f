"""Set the threshold of the chosen policy on held-out images, and guarantee its target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..handlers.policies import Outcome
from .candidates import Candidate
from .fitting import FittedParameters, Outputs
from .guarantee import Claim, Evidence, Guarantee
from .intervals import with_intervals
from .metrics import Metrics, compute_metrics
from .risk_bounds import num_passed
from .selection import Fold, MeasuredCandidate, combine, combine_out_of_fold, sweep
from .targets import Target


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """The chosen policy at its threshold, as it may be written into the spec.

    Attributes:
        text: the policy as text.
        value: the threshold; None if the policy has none, or keeps its default.
        held_out: metrics on the held-out images, which nothing was fitted on.
        guarantee: whether the target is guaranteed; None if it has no bound.
    """

    text: str
    value: float | None
    held_out: Metrics
    guarantee: Guarantee | None


def operating_point(
    chosen: MeasuredCandidate,
    target: Target,
    claim: Claim | None,
    *,
    development: Outputs,
    folds: Sequence[Fold],
    held_out: Outputs,
    fitted: FittedParameters,
) -> OperatingPoint:
    """Choose the best threshold among those that the held-out samples guarantee.

    If the target has no bound, the threshold stays the one that was chosen on the development
    samples.

    Args:
        chosen: the candidate that was chosen on the development samples.
        target: the target of tuning.
        claim: how its bound is tested; None: it has no bound.
        development: the samples on which everything was fitted.
        folds: these samples in folds, for the order of the tests.
        held_out: the samples on which nothing was fitted.
        fitted: what was fitted on the development samples.
    """
    candidate = chosen.candidate
    applied = fitted.apply(held_out)
    targets, groups, task = held_out.targets, held_out.groups, held_out.panel.task
    value, guarantee = chosen.value, None
    if claim is not None:
        values = sorted(sweep(candidate, fitted.apply(development), fitted).values)
        order = _test_order(candidate, values, claim, development, folds) or [value]
        evidence: list[Evidence] = []
        merits: list[tuple[bool, float, float]] = []

        def p_values() -> Iterator[float]:
            for each in order:
                outcome = combine(candidate, each, applied, fitted)
                evidence.append(claim.evidence(outcome, targets, groups))
                metrics = compute_metrics(
                    outcome.scores, outcome.decisions, targets, task, with_areas=False
                )
                merits.append(target.merit(dict(metrics.values)))
                yield evidence[-1].p_value

        passed = num_passed(p_values(), claim.confidence)
        best = max(range(passed), key=merits.__getitem__, default=0)
        value = order[best]
        guarantee = Guarantee(claim, evidence[best], num_tested=len(evidence), holds=passed > 0)
    outcome = combine(candidate, value, applied, fitted)
    return OperatingPoint(
        text=candidate.text(value, fitted, held_out.panel.member_names),
        value=value,
        held_out=_metrics(outcome, held_out),
        guarantee=guarantee,
    )


def _test_order(
    candidate: Candidate,
    values: Sequence[float],
    claim: Claim,
    development: Outputs,
    folds: Sequence[Fold],
) -> list[float | None]:
    """The thresholds in the order in which they are tested, from the strictest to less strict ones.

    The first one is the safest out of fold, and the last one the best out of fold by the metric
    that the target is traded against. For a recall the safest threshold is the lowest one. For a
    precision it is not the highest one: so few images reach that one that they show nothing.
    """
    if not values:
        return []
    targets, groups = development.targets, development.groups
    risks, gains = [], []
    for value in values:
        outcome = combine_out_of_fold(candidate, [value] * len(folds), folds)
        metrics = compute_metrics(
            outcome.scores, outcome.decisions, targets, claim.task, with_areas=False
        ).values
        gain = metrics[claim.target.complement]
        gains.append(-1.0 if math.isnan(gain) else gain)
        if claim.method.is_approximate:
            # A bootstrap for each threshold would take long, and would give nearly the same order.
            risks.append(claim.target.shortfall(dict(metrics)))
        else:
            risks.append(claim.evidence(outcome, targets, groups).p_value)
    positions = range(len(values))
    last = max(positions, key=gains.__getitem__)
    first = min(positions, key=lambda index: (risks[index], -abs(index - last)))
    step = 1 if first <= last else -1
    return [values[index] for index in range(first, last + step, step)]


def _metrics(outcome: Outcome, outputs: Outputs) -> Metrics:
    scores, decisions, targets = outcome.scores, outcome.decisions, outputs.targets
    task = outputs.panel.task
    metrics = compute_metrics(scores, decisions, targets, task)
    return with_intervals(metrics, scores, decisions, targets, task, groups=outputs.groups)
