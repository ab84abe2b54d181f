"""Every policy at its best operating point, measured out of fold; and the choice among them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from ..handlers.base.errors import MemberError, PolicyError, SpecError
from ..handlers.base.tasks import Task
from ..handlers.policies import BoundPolicy, Catalogue, Outcome, one_hot, parse_policy
from .candidates import Candidate, candidates
from .fitting import Learned, Outputs, learn
from .intervals import with_intervals
from .member_thresholds import per_member_curve
from .metrics import Metrics, compute_metrics
from .targets import Target
from .threshold_sweep import ThresholdCurve, says_nothing, stricter, threshold_curve


@dataclass(frozen=True, eq=False)
class Measured:
    """A candidate with its metrics.

    Attributes:
        text: the policy, at the operating point chosen on all samples.
        out_of_fold: metrics on samples that neither the operating point nor the fits have seen.
        in_sample: metrics of `text` on all samples, as an endpoint would give them.
        scores: (N, C) out of fold, for curves.
        decisions: (N, C) out of fold; None for regression.
        value: value of the swept parameter; None where there is none, or it keeps its default.
    """

    candidate: Candidate
    text: str
    out_of_fold: Metrics
    in_sample: Metrics
    scores: Tensor
    decisions: Tensor | None
    value: float | None = None


@dataclass(frozen=True, eq=False)
class _Fold:
    """Samples to learn from and samples to measure on, both with what was learned.

    Attributes:
        rows: where the samples to measure on stand among all.
    """

    training: Outputs
    test: Outputs
    rows: Tensor
    learned: Learned


def measure(
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    report: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> tuple[list[Measured], Learned]:
    """Measure every candidate by cross-validation, and then fit it on all samples.

    Args:
        outputs: what the members say about the labelled samples.
        target: what the operating point has to reach.
        folds: of the cross-validation.
        seed: of the folds.
        calibrate: fit temperatures.
        report: also areas under curves and intervals, which the choice does not need.
        on_step: called with the number of steps, after each.

    Returns:
        The candidates that the samples allow, and what was learned on all samples.

    Raises:
        SpecError: too few samples for the folds.
    """
    # Thousands of small computations: several threads would mostly wait for one another.
    with threadpool_limits(1):
        return _measure(outputs, target, folds, seed, calibrate, report, on_step)


def _measure(
    outputs: Outputs,
    target: Target,
    folds: int,
    seed: int,
    calibrate: bool,
    report: bool,
    on_step: Callable[[int], None],
) -> tuple[list[Measured], Learned]:
    parts = []
    for training, test in splits(outputs, folds, seed):
        fit = learn(outputs.rows(training), calibrate=calibrate)
        applied = fit.apply(outputs)
        parts.append(_Fold(applied.rows(training), applied.rows(test), test, fit))
    learned = learn(outputs, calibrate=calibrate)
    applied = learned.apply(outputs)
    whole = _Fold(applied, applied, torch.arange(len(outputs.targets)), learned)
    found = []
    everything = candidates(
        outputs.panel.task,
        outputs.panel.member_names,
        has_every_label=not outputs.one_sided_labels(),
    )
    for candidate in everything:
        # E.g. logit_mean does not work where a member gives probabilities.
        with contextlib.suppress(PolicyError, MemberError):
            found.append(_measure_one(candidate, target, parts, whole, report))
        on_step(len(everything))
    return found, learned


def choose(found: Sequence[Measured], target: Target) -> Measured:
    """The best out of fold; among equals a policy before a single member, then the first.

    One that gives all samples the same answer is never chosen before one that does not.
    """
    return max(
        [each for each in found if not says_nothing(each.decisions)] or found,
        key=lambda each: (
            target.merit(dict(each.out_of_fold.values)),
            each.candidate.member is None,
        ),
    )


def bind(text: str, outputs: Outputs, learned: Learned) -> BoundPolicy:
    """A policy over these members, with the fitted models."""
    catalogue = Catalogue(
        task=outputs.panel.task,
        member_names=outputs.panel.member_names,
        fitted=learned.models,
    )
    return parse_policy(text, {}, catalogue)


def apply(measured: Measured, outputs: Outputs, learned: Learned) -> Outcome:
    """What was measured, at its operating point, on any samples of the same members."""
    return _outcome(measured.candidate, measured.value, learned.apply(outputs), learned)


def _outcome(candidate: Candidate, value: float | None, applied: Outputs, fit: Learned) -> Outcome:
    """A candidate on samples that are calibrated already."""
    if candidate.member is None:
        text = candidate.text(value, fit, applied.panel.member_names)
        return bind(text, applied, fit).combine(applied.ballot())
    scores = applied.scores[applied.panel.member_names.index(candidate.member)]
    if applied.panel.task is Task.REGRESSION:
        return Outcome(scores=scores, decisions=None)
    if applied.panel.task is Task.CLASSIFICATION:
        return Outcome(scores=scores, decisions=one_hot(scores))
    return Outcome(scores=scores, decisions=scores >= (0.5 if value is None else value))


def _measure_one(
    candidate: Candidate, target: Target, folds: Sequence[_Fold], whole: _Fold, report: bool
) -> Measured:
    """Measure a candidate out of fold, at the operating point of the least strict sufficient aim.

    Aims are the target and stricter ones; the first whose metrics out of fold meet the target is
    taken. Where none does, the one that comes closest is.
    """
    task, targets = whole.test.panel.task, whole.test.targets
    curves = [_curve(candidate, fold) for fold in folds]
    best: tuple[Target, Tensor, Tensor | None, Metrics] | None = None
    for aim in stricter(target) if candidate.swept_parameter is not None else [target]:
        scores = torch.zeros(whole.test.scores.shape[1:])
        decisions = torch.zeros_like(scores, dtype=torch.bool)
        for curve, fold in zip(curves, folds, strict=True):
            outcome = _outcome(candidate, curve.best(aim), fold.test, fold.learned)
            scores[fold.rows] = outcome.scores
            if outcome.decisions is not None:
                decisions[fold.rows] = outcome.decisions
        kept = None if task is Task.REGRESSION else decisions
        found = compute_metrics(scores, kept, targets, task, curves=False)
        if best is None or _closer(target, found, best[3]):
            best = (aim, scores, kept, found)
        if target.meets(dict(found.values)):
            break
    assert best is not None
    aim, scores, kept, _ = best
    value = _curve(candidate, whole).best(aim)
    final = _outcome(candidate, value, whole.test, whole.learned)
    found = compute_metrics(scores, kept, targets, task, curves=report)
    if report:
        found = with_intervals(found, scores, kept, targets, task)
    return Measured(
        candidate=candidate,
        text=candidate.text(value, whole.learned, whole.test.panel.member_names),
        out_of_fold=found,
        in_sample=compute_metrics(final.scores, final.decisions, targets, task, curves=report),
        scores=scores,
        decisions=kept,
        value=value,
    )


def _closer(target: Target, found: Metrics, other: Metrics) -> bool:
    """Whether metrics miss the target by less."""
    return target.merit(dict(found.values)) > target.merit(dict(other.values))


def _curve(candidate: Candidate, fold: _Fold) -> ThresholdCurve:
    """The candidate's metrics at each value of its parameter, on the samples of a fold."""
    if candidate.swept_parameter is None:
        return ThresholdCurve((), ())
    if candidate.votes is not None:
        assert fold.learned.levels is not None
        return per_member_curve(fold.training, fold.learned.levels, candidate.votes)
    outcome = _outcome(candidate, None, fold.training, fold.learned)
    return threshold_curve(outcome, fold.training.targets, fold.training.panel.task)


def splits(outputs: Outputs, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows to learn from and rows to measure on, with equal shares of each class where there are.

    Raises:
        SpecError: fewer than two folds, or too few samples for them.
    """
    samples, task = len(outputs.targets), outputs.panel.task
    if folds < 2:
        raise SpecError(f"{folds} folds: cross-validation takes at least 2")
    if task not in (Task.CLASSIFICATION, Task.PRESENCE):
        if samples < folds:
            raise SpecError(f"{samples} images are too few for {folds} folds; add images")
        pairs = KFold(folds, shuffle=True, random_state=seed).split(torch.zeros(samples))
        return [(torch.from_numpy(training), torch.from_numpy(test)) for training, test in pairs]
    strata = outputs.targets.float() @ torch.arange(1.0, outputs.targets.shape[1] + 1)
    sizes = torch.bincount(strata.long())
    sizes = sizes[sizes > 0]
    if len(sizes) < 2:
        raise SpecError("all images have the same label; add images with another one")
    if int(sizes.min()) < folds:
        raise SpecError(
            f"a label has only {int(sizes.min())} images, too few for {folds} folds; add images, "
            "or take fewer folds"
        )
    splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=seed)
    pairs = splitter.split(torch.zeros(samples), strata.numpy())
    return [(torch.from_numpy(training), torch.from_numpy(test)) for training, test in pairs]
