"""Check which labels the labelled data can show anything about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from .fitting import Outputs


def labels_note(outputs: Outputs, labels: Sequence[str]) -> str | None:
    """Say which labels the data can show nothing about; None if there is no such label.

    Args:
        outputs: the members' scores on the labelled data.
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
            "was left out, as it could never answer a label that it has not seen. Add images"
        )
    return (
        f"all images have the same answer for {quoted}: whether another answer is given where it "
        "is due was not measured; stacking was left out, as it could never give it. Add images"
    )


def check_labels(
    targets: Tensor, groups: Tensor | None, task: Task, labels: Sequence[str], folds: int
) -> None:
    """Refuse data with one label only, or with a label that would be missing from some folds.

    Args:
        targets: (N, C) of the samples that are fitted on.
        groups: (N,) int64 group of each; None: each is a group of its own.
        task: task of the ensemble.
        labels: all labels of the spec.
        folds: number of folds of the cross-validation.

    Raises:
        SpecError: the message names each label that has images, but fewer than there are folds.
    """
    if task is Task.PRESENCE:
        targets = torch.cat([~targets, targets], dim=1)
    elif task is not Task.CLASSIFICATION:
        return
    counts = {
        label: int(has_label.sum()) if groups is None else len(torch.unique(groups[has_label]))
        for label, has_label in zip(labels, targets.T, strict=True)
        if bool(has_label.any())
    }
    if len(counts) == 1:
        raise SpecError(f"all images show '{next(iter(counts))}'; add images of another label")
    rare = [f"'{label}' has {count}" for label, count in counts.items() if count < folds]
    if rare:
        unit = "images" if groups is None else "groups"
        raise SpecError(
            f"too few {unit} for {folds} folds among those that are not held out: "
            f"{', '.join(rare)}; add images of them, or take fewer folds"
        )
