"""From labelled images and a target to a policy, its threshold, and a guarantee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from ..handlers.spec import EnsembleSpec
from .calibration import MemberCalibration, calibrations
from .endpoint import evaluate_endpoint, metrics_of_predictions
from .fitting import FittedParameters, Outputs
from .guarantee import Claim
from .label_checks import check_labels, labels_note
from .labelled_data import LabelledData
from .operating_point import OperatingPoint, operating_point
from .selection import MeasuredCandidate, choose, fit_folds, measure
from .splitting import cross_validation, hold_out
from .targets import Target

__all__ = ["Split", "Tuning", "evaluate_endpoint", "metrics_of_predictions", "split", "tune"]

CONFIDENCE = 0.95
"""The default confidence of a guarantee."""

HELD_OUT_SHARE = 0.5
"""The default share of the images that are held out.

The guarantee needs many images to be near what is true of all images; fits need fewer.
"""


@dataclass(frozen=True, eq=False)
class Split:
    """Which labelled images are fitted on, and which ones the guarantee is computed from.

    Attributes:
        development: row numbers of the images that everything is fitted and chosen on.
        held_out: row numbers of the images that nothing is fitted on.
        claim: the guarantee that is to be shown; None if the target has no bound.
        margin: what a result has to reach for the guarantee; the target itself if it has no bound.
    """

    development: Tensor
    held_out: Tensor
    claim: Claim | None
    margin: Target


def split(
    spec: EnsembleSpec,
    data: LabelledData,
    target: Target,
    *,
    confidence: float = CONFIDENCE,
    held_out_share: float = HELD_OUT_SHARE,
    folds: int = 5,
    seed: int = 0,
) -> Split:
    """Hold out images for the guarantee, and refuse a target that they cannot show.

    Needs no scores, so that a target is refused before the members run.

    Args:
        spec: the ensemble.
        data: labelled images.
        target: what the policy is to reach.
        confidence: the probability with which the guarantee is to hold.
        held_out_share: share of the images, or of their groups, that are held out.
        folds: number of folds among the other images.
        seed: of the choice.

    Raises:
        SpecError: too few images for the guarantee or the folds, of all or of a label.
    """
    for name, number in (("--confidence", confidence), ("--held-out", held_out_share)):
        if not 0 < number < 1:
            raise SpecError(f"{name} {number:g}: write a number between 0 and 1")
    targets, groups = data.targets, data.groups
    claim = None
    if target.bound is not None:
        claim = Claim(target, spec.task, confidence, is_grouped=groups is not None)
    stratify = spec.task in (Task.CLASSIFICATION, Task.PRESENCE)
    development, held_out = hold_out(
        targets,
        groups,
        share=held_out_share,
        stratify=stratify if claim is None else claim.may_stratify,
        seed=seed,
    )

    def groups_of(rows: Tensor) -> Tensor | None:
        return None if groups is None else groups[rows]

    margin = target
    if claim is not None:
        claim.check(targets[held_out], groups_of(held_out))
        available = claim.num_available(targets[held_out], groups_of(held_out))
        margin = claim.target_with_margin(available)
    if len(held_out) == 0 or len(development) == 0:
        raise SpecError(f"{len(targets)} images cannot be split; add images")
    check_labels(targets[development], groups_of(development), spec.task, spec.labels, folds)
    return Split(development, held_out, claim, margin)


@dataclass(frozen=True, eq=False)
class Tuning:
    """The result of tuning.

    Attributes:
        spec: the ensemble.
        data: the labelled images.
        target: the target of tuning.
        development: the members' scores on the images that everything was fitted on.
        held_out: the members' scores on the images that nothing was fitted on.
        fitted: temperatures, weights and models, fitted on the development images.
        measured: every candidate, single members first.
        chosen: the candidate that was chosen.
        operating_point: its threshold, and what the held-out images show about it.
        calibrations: the calibration of each member on the development images, out of fold; empty
            if no temperatures were fitted.
    """

    spec: EnsembleSpec
    data: LabelledData
    target: Target
    development: Outputs
    held_out: Outputs
    fitted: FittedParameters
    measured: Sequence[MeasuredCandidate]
    chosen: MeasuredCandidate
    operating_point: OperatingPoint
    calibrations: Sequence[MemberCalibration] = ()

    @property
    def reached(self) -> bool:
        """Whether the target is guaranteed; true if it has no bound."""
        guarantee = self.operating_point.guarantee
        return guarantee is None or guarantee.holds

    @property
    def notes(self) -> list[str]:
        """What people have to know about the metrics, in a sentence or two each."""
        notes = [labels_note(self.development, self.spec.score_labels)]
        for each in self.calibrations:
            if each.temperature != 1 and not each.improves:
                notes.append(
                    f"the temperature {each.temperature:.3f} of member {each.member} is not used: "
                    "on images that it was not fitted on it makes the calibration worse (expected "
                    f"calibration error {each.before['ece']:.4f} -> {each.after['ece']:.4f}, "
                    f"negative log likelihood {each.before['nll']:.4f} -> {each.after['nll']:.4f})"
                )
        return [note for note in notes if note is not None]


def tune(
    spec: EnsembleSpec,
    data: LabelledData,
    outputs: Outputs,
    target: Target,
    *,
    confidence: float = CONFIDENCE,
    held_out_share: float = HELD_OUT_SHARE,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    report: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> Tuning:
    """Measure every policy at its best threshold, choose one, and test it on held-out images.

    Temperatures, weights, models and the policy are fitted and chosen on the development images
    alone, by cross-validation. The threshold is then the least strict one that the held-out images
    guarantee; `guarantee` says why the guarantee holds.

    Args:
        spec: the ensemble.
        data: labelled images.
        outputs: the members' scores on all of them.
        target: what the policy is to reach.
        confidence: the probability with which the guarantee is to hold.
        held_out_share: share of the images, or of their groups, that are held out.
        folds: number of folds of the cross-validation.
        seed: of the split and of the folds.
        calibrate: fit temperatures, and use those that improve a member's calibration.
        report: also compute areas under curves and intervals of every candidate.
        on_step: called with the number of candidates, after each.

    Raises:
        SpecError: too few images for the guarantee or the folds, of all or of a label.
    """
    parts = split(
        spec,
        data,
        target,
        confidence=confidence,
        held_out_share=held_out_share,
        folds=folds,
        seed=seed,
    )
    development, held_out = outputs.rows(parts.development), outputs.rows(parts.held_out)
    calibrated: Sequence[MemberCalibration] = ()
    is_calibrated = [False] * len(spec.members)
    if calibrate and spec.task is not Task.REGRESSION:
        calibrated = calibrations(development, cross_validation(development, folds, seed))
        is_calibrated = [each.improves for each in calibrated]
    measured, fitted = measure(
        development,
        parts.margin,
        folds=folds,
        seed=seed,
        is_calibrated=is_calibrated,
        report=report,
        on_step=on_step,
    )
    # A single member of a regression is no policy: there is no text to write into the spec.
    eligible = [
        m for m in measured if m.candidate.member is None or spec.task is not Task.REGRESSION
    ]
    chosen = choose(eligible, target, parts.margin)
    point = operating_point(
        chosen,
        target,
        parts.claim,
        development=development,
        folds=fit_folds(development, is_calibrated, folds=folds, seed=seed),
        held_out=held_out,
        fitted=fitted,
    )
    return Tuning(
        spec, data, target, development, held_out, fitted, measured, chosen, point, calibrated
    )
