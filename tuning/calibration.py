"""Measure how well each member's scores are calibrated, with and without a fitted temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..handlers.base.tasks import Task
from .fitting import Outputs, fit_temperature, members_with_logits, probabilities
from .metrics import calibration_error, confidence_and_truth

_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class MemberCalibration:
    """The calibration of one member, on samples that its temperature was not fitted on.

    Attributes:
        member: the member's name.
        temperature: fitted on all development samples, on top of the spec's temperature; 1 if the
            member has no logits.
        before: ``ece`` (expected calibration error, 15 bins) and ``nll`` (negative log likelihood
            per sample and score) with the spec's temperature.
        after: the two metrics with temperatures that were fitted on other samples.
    """

    member: str
    temperature: float
    before: dict[str, float]
    after: dict[str, float]

    @property
    def improves(self) -> bool:
        """Whether the temperature is used: on other samples it makes neither metric worse."""
        return self.temperature != 1 and all(
            self.after[name] <= value for name, value in self.before.items()
        )


def calibrations(
    outputs: Outputs, splits: Sequence[tuple[Tensor, Tensor]]
) -> list[MemberCalibration]:
    """Measure every member's calibration; empty for a regression.

    Args:
        outputs: the members' scores with the spec's temperatures.
        splits: rows to fit on and rows to measure on; the latter are all rows together.
    """
    task = outputs.panel.task
    if task is Task.REGRESSION:
        return []
    results = []
    names, fittable = outputs.panel.member_names, members_with_logits(outputs)
    for member, has_logits, logits, before in zip(
        names, fittable, outputs.logits, outputs.scores, strict=True
    ):
        after, temperature = before.clone(), 1.0
        if has_logits:
            temperature = fit_temperature(logits, outputs.targets, task)
            for training, test in splits:
                of_fold = fit_temperature(logits[training], outputs.targets[training], task)
                after[test] = probabilities(logits[test] / of_fold, task)
        results.append(
            MemberCalibration(
                member,
                temperature,
                before=_calibration_metrics(before, outputs.targets, task),
                after=_calibration_metrics(after, outputs.targets, task),
            )
        )
    return results


def _calibration_metrics(scores: Tensor, targets: Tensor, task: Task) -> dict[str, float]:
    wide = scores.double().clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    if task is Task.CLASSIFICATION:
        likelihood = wide[targets].log()
    else:
        likelihood = torch.where(targets, wide, 1 - wide).log()
    return {
        "ece": calibration_error(*confidence_and_truth(scores, targets, task)),
        "nll": -float(likelihood.mean()),
    }
