"""What the labelled data can show, and what they cannot."""

from __future__ import annotations

from collections.abc import Sequence

from ...handlers.errors import SpecError
from ...handlers.tasks import Task
from .fitting import Outputs


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
    """Refuse a label that some folds would have to do without.

    Args:
        outputs: on the labelled data.
        labels: names of the score labels.
        folds: of the cross-validation.

    Raises:
        SpecError: names each label of a classification that has images, but fewer than folds.
    """
    if outputs.panel.task is not Task.CLASSIFICATION:
        return
    counts = dict(zip(labels, outputs.targets.sum(dim=0).tolist(), strict=True))
    few = [f"'{label}' has {count}" for label, count in counts.items() if 0 < count < folds]
    if few:
        raise SpecError(
            f"too few images for {folds} folds: {', '.join(few)}; add images of them, take fewer "
            "folds, or leave these labels out of the data"
        )
