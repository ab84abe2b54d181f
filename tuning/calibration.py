"""How well members know how sure they may be, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..handlers.base.tasks import Task
from .fitting import Learned, Outputs, fit_temperature
from .metrics import calibration_error, confidence_and_truth

_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class MemberCalibration:
    """One member.

    Attributes:
        temperature: fitted on all samples, on top of the spec's; 1 where the member has no logits.
        before: ``ece`` (expected calibration error, 15 bins) and ``nll`` (negative log likelihood
            per sample and score) as the spec has the member.
        after: the same with temperatures fitted on other samples than those measured.
    """

    member: str
    temperature: float
    before: dict[str, float]
    after: dict[str, float]


def calibrations(
    outputs: Outputs, learned: Learned, splits: Sequence[tuple[Tensor, Tensor]]
) -> list[MemberCalibration]:
    """Every member's calibration; empty for a regression.

    Args:
        outputs: as the spec has the members.
        learned: from all samples.
        splits: rows to fit on and rows to measure on, which together are all.
    """
    task = outputs.panel.task
    if task is Task.REGRESSION:
        return []
    found = []
    for index, member in enumerate(outputs.panel.member_names):
        temperature = learned.temperatures[index]
        scores = outputs.scores[index].clone()
        if temperature != 1:
            logits = outputs.logits[index]
            for training, test in splits:
                own = fit_temperature(logits[training], outputs.targets[training], task)
                scaled = logits[test] / own
                scores[test] = (
                    scaled.softmax(dim=1) if task is Task.CLASSIFICATION else scaled.sigmoid()
                )
        found.append(
            MemberCalibration(
                member,
                temperature,
                before=_measures(outputs.scores[index], outputs.targets, task),
                after=_measures(scores, outputs.targets, task),
            )
        )
    return found


def _measures(scores: Tensor, targets: Tensor, task: Task) -> dict[str, float]:
    wide = scores.double().clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    if task is Task.CLASSIFICATION:
        likelihood = wide[targets].log()
    else:
        likelihood = torch.where(targets, wide, 1 - wide).log()
    return {
        "ece": calibration_error(*confidence_and_truth(scores, targets, task)),
        "nll": -float(likelihood.mean()),
    }
