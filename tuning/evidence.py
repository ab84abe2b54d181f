"""What the labelled data can show, and what they cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from .fitting import Outputs
from .targets import Target

CONFIDENCE = 0.95
"""With which a target is to be proven."""

_COUNTED = {
    "recall": "images with the label",
    "precision": "answers with the label",
    "specificity": "images without the label",
    "false_positive_rate": "images without the label",
    "accuracy": "answers",
    "coverage": "images",
}
"""What each figure is a share of. F1 and the metrics of a regression are shares of nothing."""

_MACRO = frozenset({"recall", "precision"})
"""Metrics that classification takes as a mean over the labels."""


@dataclass(frozen=True)
class Evidence:
    """How much the data can prove about a target.

    Attributes:
        counted: what the target's figure is a share of.
        available: how many of them the data have; for a mean over labels, of the rarest label.
        needed: how many have to be there, all of them answered rightly, to prove the target; None:
            no number is enough.
    """

    counted: str
    available: int
    needed: int | None

    @property
    def is_enough(self) -> bool:
        """Whether there are so many that the target could be proven at all."""
        return self.needed is not None and self.available >= self.needed


def evidence(
    target: Target, decisions: Tensor | None, targets: Tensor, task: Task
) -> Evidence | None:
    """How much data there are for a target; None where it is no bound of a share.

    Args:
        target: what is to be reached.
        decisions: (N, C) bool, of the policy that was chosen.
        targets: (N, C) bool.
        task: of the ensemble.
    """
    if target.bound is None or decisions is None or target.metric not in _COUNTED:
        return None
    share = 1 - target.bound if target.metric == "false_positive_rate" else target.bound
    counted = _COUNTED[target.metric]
    if task is Task.CLASSIFICATION and target.metric in _MACRO:
        counted += " that has the fewest"
    available = _available(target.metric, decisions, targets, task)
    return Evidence(counted, available, images_needed(share))


def images_needed(share: float) -> int | None:
    """How many answers in a row have to be right to prove that this share of all is.

    If a smaller share were right, so many would all be with a probability of at most 5 %:
    ``share ** n <= 0.05``. None: no number is enough.
    """
    if share >= 1:
        return None
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share)) if share > 0 else 0


def _available(metric: str, decisions: Tensor, targets: Tensor, task: Task) -> int:
    if task is Task.CLASSIFICATION:
        by_label = {"recall": targets, "precision": decisions}
        if metric in by_label:
            return int(by_label[metric].sum(dim=0).min())
        return int((decisions.sum(dim=1) == 1).sum()) if metric == "accuracy" else len(targets)
    found = {"recall": targets, "precision": decisions}
    found |= dict.fromkeys(("specificity", "false_positive_rate"), ~targets)
    return int(found[metric].sum()) if metric in found else targets.numel()


def proof_note(target: Target, found: Evidence | None) -> str | None:
    """For people: that too few data prove nothing; None where there are enough."""
    if found is None or found.is_enough:
        return None
    start = f"that proves nothing about {target}: "
    if found.needed is None:
        return f"{start}no number of images shows that there is never an exception"
    return (
        f"{start}there are {found.available} {found.counted}, and at {CONFIDENCE:.0%} confidence "
        f"it takes at least {found.needed}, all of them right"
    )


def labels_note(outputs: Outputs, labels: Sequence[str]) -> str | None:
    """For people: which labels the data cannot tell anything about; None where there are none.

    Args:
        outputs: on the labelled data.
        labels: names of the score labels.
    """
    names = [labels[index] for index in outputs.one_sided_labels()]
    if not names:
        return None
    quoted = ", ".join(f"'{name}'" for name in names)
    if outputs.panel.task is Task.CLASSIFICATION:
        return (
            f"no image shows {quoted}: whether such images are recognised was not measured, and "
            "recall, precision and f1, which are means over all labels, count 0 there; stacking "
            "was left out, as it could never answer what it has not seen. Add images"
        )
    return (
        f"all images have the same answer for {quoted}: whether another one is found was not "
        "measured; stacking was left out, as it could never give it. Add images"
    )


def check_labels(outputs: Outputs, labels: Sequence[str], folds: int) -> None:
    """Refuse data with one label only, or with a label that some folds would have to do without.

    Args:
        outputs: on the labelled data.
        labels: of the spec.
        folds: of the cross-validation.

    Raises:
        SpecError: names each label that has images, but fewer than folds.
    """
    task, targets = outputs.panel.task, outputs.targets
    if task is Task.PRESENCE:
        targets = torch.cat([~targets, targets], dim=1)
    elif task is not Task.CLASSIFICATION:
        return
    counts = zip(labels, targets.sum(dim=0).tolist(), strict=True)
    there = {label: count for label, count in counts if count}
    if len(there) == 1:
        raise SpecError(f"all images show '{next(iter(there))}'; add images of another label")
    few = [f"'{label}' has {count}" for label, count in there.items() if count < folds]
    if few:
        raise SpecError(
            f"too few images for {folds} folds: {', '.join(few)}; add images of them, or take "
            "fewer folds"
        )
