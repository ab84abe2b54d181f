"""From labelled data and a target to an operating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..handlers.base.tasks import Task
from ..handlers.spec import EnsembleSpec
from .calibration import MemberCalibration, calibrations
from .candidates import candidates
from .endpoint import evaluate_endpoint, metrics_of_predictions
from .evidence import Evidence, check_labels, evidence, labels_note, proof_note
from .fitting import Learned, Outputs
from .labelled_data import LabelledData
from .nested import Expected, expected
from .selection import Measured, choose, measure, splits
from .targets import Target

__all__ = ["Tuning", "evaluate_endpoint", "metrics_of_predictions", "tune"]


@dataclass(frozen=True, eq=False)
class Tuning:
    """All that tuning found.

    Attributes:
        outputs: what the members say, as the spec has them.
        learned: temperatures, weights and models, from all samples.
        measured: every candidate, members first.
        chosen: the operating point.
        reached: whether it meets the target out of fold.
        calibrations: of each member, out of fold.
        expected: metrics of the whole of tuning on samples that it did not see; None: not measured.
    """

    spec: EnsembleSpec
    data: LabelledData
    target: Target
    outputs: Outputs
    learned: Learned
    measured: Sequence[Measured]
    chosen: Measured
    reached: bool
    calibrations: Sequence[MemberCalibration] = ()
    expected: Expected | None = None

    @property
    def evidence(self) -> Evidence | None:
        """How much the data can prove about the target; None where it is no bound of a share."""
        decisions, targets = self.chosen.decisions, self.outputs.targets
        return evidence(self.target, decisions, targets, self.outputs.panel.task)

    @property
    def notes(self) -> list[str]:
        """What people have to know about the metrics, a sentence or two for each."""
        notes = [
            proof_note(self.target, self.evidence) if self.reached else None,
            labels_note(self.outputs, self.spec.score_labels),
        ]
        return [note for note in notes if note is not None]


def tune(
    spec: EnsembleSpec,
    data: LabelledData,
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    nested: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> Tuning:
    """Measure every policy at its best operating point and choose one.

    Temperatures, weights, fitted models and operating points are fitted inside the folds for the
    metrics that are compared, and on all samples for what is written.

    Args:
        spec: the ensemble.
        data: labelled images.
        outputs: what its members say about them.
        target: what the operating point is to reach.
        folds: of the cross-validation.
        seed: of the folds.
        calibrate: fit temperatures.
        nested: also measure what the choice itself gives on new images.
        on_step: called with the number of steps, after each.

    Raises:
        SpecError: too few images for the folds, of all or of a label.
    """
    check_labels(outputs, spec.labels, folds)
    tried = candidates(
        spec.task, outputs.panel.member_names, has_every_label=not outputs.one_sided_labels()
    )
    steps = len(tried) + (folds if nested else 0)

    def step(_: int) -> None:
        on_step(steps)

    measured, learned = measure(
        outputs, target, folds=folds, seed=seed, calibrate=calibrate, on_step=step
    )

    def eligible(each: Measured) -> bool:
        return each.candidate.member is None or spec.task is not Task.REGRESSION

    chosen = choose([each for each in measured if eligible(each)], target)
    reached = target.meets(dict(chosen.out_of_fold.values))
    foreseen = None
    if nested:
        foreseen = expected(
            outputs,
            target,
            folds=folds,
            seed=seed,
            calibrate=calibrate,
            eligible=eligible,
            on_step=step,
        )
    calibrated = calibrations(outputs, learned, splits(outputs, folds, seed))
    return Tuning(
        spec, data, target, outputs, learned, measured, chosen, reached, calibrated, foreseen
    )
