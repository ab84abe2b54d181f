"""Measure every candidate at its best threshold by cross-validation, and choose one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from ..handlers.base.errors import MemberError, PolicyError
from ..handlers.base.tasks import Task
from ..handlers.policies import BoundPolicy, Catalogue, Outcome, one_hot, parse_policy
from .candidates import Candidate, candidates
from .fitting import FittedParameters, Outputs, fit_parameters, members_with_logits
from .intervals import with_intervals
from .member_thresholds import per_member_curve
from .metrics import Metrics, compute_metrics
from .splitting import cross_validation
from .targets import Target
from .threshold_sweep import ThresholdCurve, is_constant, threshold_curve


@dataclass(frozen=True, eq=False)
class MeasuredCandidate:
    """A candidate with its metrics.

    Attributes:
        candidate: the policy or member.
        text: the policy as text, with the threshold that was chosen on all samples.
        out_of_fold: metrics on samples that neither the threshold nor the fits have seen.
        in_sample: metrics of `text` on all samples, as an endpoint would give them.
        scores: (N, C) scores out of fold, for curves.
        decisions: (N, C) decisions out of fold; None for regression.
        value: value of the swept parameter; None if there is none, or if it keeps its default.
    """

    candidate: Candidate
    text: str
    out_of_fold: Metrics
    in_sample: Metrics
    scores: Tensor
    decisions: Tensor | None
    value: float | None = None


@dataclass(frozen=True, eq=False)
class Fold:
    """Samples to choose a threshold on and samples to measure on.

    Attributes:
        training: the samples that everything is fitted on, calibrated.
        test: the samples to measure on, calibrated.
        test_rows: row numbers of the latter among all samples.
        fitted: what was fitted on the training samples.
    """

    training: Outputs
    test: Outputs
    test_rows: Tensor
    fitted: FittedParameters


def measure(
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    is_calibrated: Sequence[bool] | None = None,
    report: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> tuple[list[MeasuredCandidate], FittedParameters]:
    """Measure every candidate by cross-validation, and then fit it on all samples.

    Args:
        outputs: the members' scores on labelled samples.
        target: what each candidate's threshold is to reach.
        folds: number of folds.
        seed: of the folds.
        is_calibrated: for each member whether a temperature is fitted; None: for all with logits.
        report: also compute areas under curves and intervals, which the choice does not need.
        on_step: called with the number of candidates, after each.

    Returns:
        The candidates that work with these members, and what was fitted on all samples.

    Raises:
        SpecError: too few samples for the folds.
    """
    # Thousands of small computations: several threads would mostly wait for one another.
    with threadpool_limits(1):
        calibrated = members_with_logits(outputs) if is_calibrated is None else is_calibrated
        parts = fit_folds(outputs, calibrated, folds=folds, seed=seed)
        fitted = fit_parameters(outputs, calibrated)
        applied = fitted.apply(outputs)
        whole = Fold(applied, applied, torch.arange(len(outputs.targets)), fitted)
        measured = []
        all_candidates = candidates(
            outputs.panel.task,
            outputs.panel.member_names,
            has_every_label=not outputs.one_sided_labels(),
        )
        for candidate in all_candidates:
            # E.g. logit_mean does not work if a member gives probabilities.
            with contextlib.suppress(PolicyError, MemberError):
                measured.append(_measure_candidate(candidate, target, parts, whole, report))
            on_step(len(all_candidates))
        return measured, fitted


def fit_folds(
    outputs: Outputs, is_calibrated: Sequence[bool], *, folds: int, seed: int
) -> list[Fold]:
    """Split samples into folds, and fit parameters on the training samples of each.

    Raises:
        SpecError: too few samples for the folds.
    """
    parts = []
    for training, test in cross_validation(outputs, folds, seed):
        fitted = fit_parameters(outputs.rows(training), is_calibrated)
        applied = fitted.apply(outputs)
        parts.append(Fold(applied.rows(training), applied.rows(test), test, fitted))
    return parts


def choose(
    measured: Sequence[MeasuredCandidate], target: Target, margin: Target | None = None
) -> MeasuredCandidate:
    """Choose the best candidate out of fold; among equals a policy before a single member.

    Args:
        measured: the candidates. One that gives all samples the same answer is chosen only if all
            of them do.
        target: what the candidates are compared by, out of fold.
        margin: a stricter target. A candidate that cannot meet it even on the samples that its
            threshold was chosen on, since it has few thresholds, is chosen only if none can.
    """
    useful = [each for each in measured if not is_constant(each.decisions)] or measured
    if margin is not None:
        useful = [m for m in useful if margin.meets(dict(m.in_sample.values))] or useful
    return max(
        useful,
        key=lambda each: (
            target.merit(dict(each.out_of_fold.values)),
            each.candidate.member is None,
        ),
    )


def bind(text: str, outputs: Outputs, fitted: FittedParameters) -> BoundPolicy:
    """Parse a policy for these members, with the fitted models."""
    catalogue = Catalogue(
        task=outputs.panel.task,
        member_names=outputs.panel.member_names,
        fitted=fitted.models,
    )
    return parse_policy(text, {}, catalogue)


def apply(measured: MeasuredCandidate, outputs: Outputs, fitted: FittedParameters) -> Outcome:
    """Combine scores by a candidate at its threshold, on any samples of the same members."""
    return combine(measured.candidate, measured.value, fitted.apply(outputs), fitted)


def combine(
    candidate: Candidate, value: float | None, applied: Outputs, fitted: FittedParameters
) -> Outcome:
    """Combine scores by a candidate.

    Args:
        candidate: the policy or member.
        value: value of its swept parameter; None: its default.
        applied: scores to which the fitted parameters are applied already.
        fitted: the fitted parameters.
    """
    if candidate.member is None:
        text = candidate.text(value, fitted, applied.panel.member_names)
        return bind(text, applied, fitted).combine(applied.ballot())
    scores = applied.scores[applied.panel.member_names.index(candidate.member)]
    if applied.panel.task is Task.REGRESSION:
        return Outcome(scores=scores, decisions=None)
    if applied.panel.task is Task.CLASSIFICATION:
        return Outcome(scores=scores, decisions=one_hot(scores))
    return Outcome(scores=scores, decisions=scores >= (0.5 if value is None else value))


def combine_out_of_fold(
    candidate: Candidate, values: Sequence[float | None], folds: Sequence[Fold]
) -> Outcome:
    """Combine the scores of all samples, each one with the parameters of the fold that tests it.

    Args:
        candidate: the policy or member.
        values: for each fold the value of the swept parameter; None: its default.
        folds: folds that test every sample once.
    """
    outcomes = [
        combine(candidate, value, fold.test, fold.fitted)
        for value, fold in zip(values, folds, strict=True)
    ]
    order = torch.cat([fold.test_rows for fold in folds]).argsort()
    scores = torch.cat([outcome.scores for outcome in outcomes])[order]
    decisions = [outcome.decisions for outcome in outcomes if outcome.decisions is not None]
    return Outcome(scores=scores, decisions=torch.cat(decisions)[order] if decisions else None)


def sweep(candidate: Candidate, applied: Outputs, fitted: FittedParameters) -> ThresholdCurve:
    """Compute a candidate's metrics at each value of its swept parameter; none: an empty curve.

    Args:
        candidate: the policy or member.
        applied: scores to which the fitted parameters are applied already.
        fitted: the fitted parameters.
    """
    if candidate.swept_parameter is None:
        return ThresholdCurve((), ())
    if candidate.votes is not None:
        assert fitted.negative_quantiles is not None
        return per_member_curve(applied, fitted.negative_quantiles, candidate.votes)
    outcome = combine(candidate, None, applied, fitted)
    return threshold_curve(outcome, applied.targets, applied.panel.task)


def _measure_candidate(
    candidate: Candidate, target: Target, folds: Sequence[Fold], whole: Fold, report: bool
) -> MeasuredCandidate:
    targets, groups = whole.test.targets, whole.test.groups
    values = [sweep(candidate, fold.training, fold.fitted).best(target) for fold in folds]
    outcome = combine_out_of_fold(candidate, values, folds)
    scores, decisions, task = outcome.scores, outcome.decisions, whole.test.panel.task
    out_of_fold = compute_metrics(scores, decisions, targets, task, with_areas=report)
    if report:
        out_of_fold = with_intervals(out_of_fold, scores, decisions, targets, task, groups=groups)
    value = sweep(candidate, whole.training, whole.fitted).best(target)
    final = combine(candidate, value, whole.test, whole.fitted)
    return MeasuredCandidate(
        candidate=candidate,
        text=candidate.text(value, whole.fitted, whole.test.panel.member_names),
        out_of_fold=out_of_fold,
        in_sample=compute_metrics(final.scores, final.decisions, targets, task, with_areas=report),
        scores=scores,
        decisions=decisions,
        value=value,
    )
