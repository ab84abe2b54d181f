"""From labelled data and a target to an operating point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...handlers.spec import EnsembleSpec
from ...handlers.tasks import Task
from ...serving.client import Prediction
from .figures import Figures, figures
from .fitting import Learned, Outputs
from .labelled_data import LabelledData
from .selection import Measured, choose, measure
from .targets import Target


@dataclass(frozen=True, eq=False)
class Tuning:
    """All that tuning found.

    Attributes:
        outputs: what the members say, as the spec has them.
        learned: temperatures, weights and models, from all samples.
        measured: every candidate, members first.
        chosen: the operating point.
        reached: whether it meets the target out of fold.
    """

    spec: EnsembleSpec
    data: LabelledData
    target: Target
    outputs: Outputs
    learned: Learned
    measured: Sequence[Measured]
    chosen: Measured
    reached: bool


def tune(
    spec: EnsembleSpec,
    data: LabelledData,
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> Tuning:
    """Measure every policy at its best operating point and choose one.

    All that is learned (temperatures, weights, fitted models, the dial of each policy) is learned
    inside the folds for the figures that are compared, and on all samples for what is written.
    """
    measured, learned = measure(
        outputs, target, folds=folds, seed=seed, calibrate=calibrate, on_step=on_step
    )
    able = [m for m in measured if m.candidate.member is None or spec.task is not Task.REGRESSION]
    chosen = choose(able, target)
    reached = target.meets(dict(chosen.out_of_fold.values))
    return Tuning(spec, data, target, outputs, learned, measured, chosen, reached)


def figures_of_predictions(
    spec: EnsembleSpec, data: LabelledData, predictions: Sequence[Prediction]
) -> dict[str, Figures]:
    """Figures of members and of the combined answer, from what an endpoint said.

    Args:
        spec: for labels; a served model's describe answer has them too.
        data: the images that were asked about.
        predictions: one for each, asked with ``include=scores``.
    """
    names = ["combined", *predictions[0].members]
    columns: Mapping[str, list[Prediction]] = {
        name: [p if name == "combined" else p.members[name] for p in predictions] for name in names
    }
    return {
        name: figures(*_tensors(spec, answers), data.targets, spec.task)
        for name, answers in columns.items()
    }


def _tensors(spec: EnsembleSpec, answers: Sequence[Prediction]) -> tuple[Tensor, Tensor | None]:
    labels = spec.score_labels
    if spec.task is Task.REGRESSION:
        return torch.tensor([[a.values[label] for label in labels] for a in answers]), None
    scores = torch.tensor([[answer.scores[label] for label in labels] for answer in answers])
    decisions = [[label in answer.labels for label in labels] for answer in answers]
    return scores, torch.tensor(decisions)
