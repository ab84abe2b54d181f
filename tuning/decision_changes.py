"""Compares the decisions of two ensembles on the same images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..handlers.base.errors import RequestError
from ..handlers.base.tasks import Task
from ..serving.client import Prediction
from .labelled_data import Answering, LabelledData

ABSTAINED = "(undecided)"
"""Name of the decision of a policy that abstains."""

NOTHING = "(none)"
"""Name of the decision for none of the labels."""

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class DecisionChange:
    """An image on which the decision changes.

    Attributes:
        image: its path.
        before: the first ensemble's decision, or its values.
        after: the second ensemble's.
        score_before: score of the first ensemble's decision; None if it has none.
        score_after: score of the second ensemble's.
        truth: what the image shows; None: that is not known.
        was_right: whether the first decision is right; None: that is not known.
        is_right: whether the second one is.
    """

    image: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None
    truth: str | None = None
    was_right: bool | None = None
    is_right: bool | None = None


def corrected(changes: Sequence[DecisionChange]) -> int | None:
    """Count the changes from wrong to right; None if what the images show is not known."""
    if any(each.was_right is None for each in changes):
        return None
    return sum(bool(each.is_right) and not each.was_right for each in changes)


def broken(changes: Sequence[DecisionChange]) -> int | None:
    """Count the changes from right to wrong; None if what the images show is not known."""
    if any(each.was_right is None for each in changes):
        return None
    return sum(bool(each.was_right) and not each.is_right for each in changes)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of whether two ensembles are right equally often (McNemar 1947).

    Among the images on which only one of them is right, each is equally likely to be that one if
    they are equally good. The number of either is then binomial with probability 1/2.

    Attributes:
        only_before: images on which only the first ensemble is right.
        only_after: images on which only the second one is.
        p_value: two-sided.
    """

    only_before: int
    only_after: int
    p_value: float

    @classmethod
    def of(cls, only_before: int, only_after: int) -> McNemar:
        """Compute the test from the two numbers of images."""
        from scipy.stats import binomtest

        both = only_before + only_after
        p_value = float(binomtest(only_after, both).pvalue) if both else 1.0
        return cls(only_before, only_after, p_value)

    def __str__(self) -> str:
        counts = f"only the first is right on {self.only_before} images, only the second on "
        counts += f"{self.only_after}"
        if self.p_value >= _SIGNIFICANT:
            verdict = "that does not show that either is right more often"
        else:
            better = "second" if self.only_after > self.only_before else "first"
            verdict = f"the {better} is right more often"
        return f"{counts}: {verdict} (p = {self.p_value:.2g}, McNemar's exact test)"


@dataclass(frozen=True)
class DecisionChanges:
    """What changes on N images.

    Attributes:
        data: name of the data.
        num_images: N.
        changes: the images whose decisions change.
        errors: images that an ensemble could not read or compute -> why; they are left out.
        right_before: number of images on which the first ensemble is right; None: no labels.
        right_after: the same for the second ensemble.
        test: whether the second one is better; None: no labels, or a regression.
        root_mean_square_errors: of a regression, before and after; None: another task, or no
            labels.
        largest_difference: the largest change of a score or value, on any image.
        has_groups: whether images of one group depend on each other, which the test does not know.
        is_regression: whether the answers are values.
    """

    data: str
    num_images: int
    changes: tuple[DecisionChange, ...]
    errors: Mapping[str, str]
    right_before: int | None = None
    right_after: int | None = None
    test: McNemar | None = None
    root_mean_square_errors: tuple[float, float] | None = None
    largest_difference: float = 0.0
    has_groups: bool = False
    is_regression: bool = False

    @cached_property
    def directions(self) -> dict[tuple[str, str], list[DecisionChange]]:
        """Decision before and after -> the images that change so; the most frequent ones first.

        All changes of a regression's values count as one direction.
        """
        if self.is_regression:
            return {("values", "other values"): list(self.changes)} if self.changes else {}
        counts = Counter((each.before, each.after) for each in self.changes)
        images: dict[tuple[str, str], list[DecisionChange]] = {
            direction: [] for direction, _ in counts.most_common()
        }
        for each in self.changes:
            images[each.before, each.after].append(each)
        return images

    def to_json(self) -> dict[str, Any]:
        """Return all of it as values of JSON."""
        return {
            "data": self.data,
            "images": self.num_images,
            "errors": dict(self.errors),
            "changed": len(self.changes),
            "largest_difference": self.largest_difference,
            "directions": [
                {
                    "before": before,
                    "after": after,
                    "images": len(images),
                    "corrected": corrected(images),
                    "broken": broken(images),
                }
                for (before, after), images in self.directions.items()
            ],
            "right": None
            if self.right_before is None
            else {"before": self.right_before, "after": self.right_after},
            "mcnemar": None if self.test is None else asdict(self.test),
            "root_mean_square_error": None
            if self.root_mean_square_errors is None
            else dict(zip(("before", "after"), self.root_mean_square_errors, strict=True)),
            "samples": [asdict(each) for each in self.changes],
        }


@dataclass(frozen=True)
class Answers:
    """One ensemble's predictions for N images.

    Attributes:
        ensemble: its task and labels.
        predictions: N predictions.
        data: what the images show, over the ensemble's score labels; None: that is not known.
    """

    ensemble: Answering
    predictions: Sequence[Prediction]
    data: LabelledData | None

    def is_right(self, row: int) -> bool | None:
        """Whether a decision is what the image shows; None if that is not known.

        No decision is never right.
        """
        if self.data is None or self.ensemble.task is Task.REGRESSION:
            return None
        if self.predictions[row].raw.get("abstained"):
            return False
        chosen = [label in self.predictions[row].labels for label in self.ensemble.score_labels]
        return chosen == self.data.targets[row].tolist()

    def truth(self, row: int) -> str | None:
        """What an image shows, written as a decision is; None if that is not known."""
        if self.data is None:
            return None
        targets = self.data.targets[row].tolist()
        labels = self.ensemble.score_labels
        if self.ensemble.task is Task.REGRESSION:
            return _values(dict(zip(labels, targets, strict=True)))
        shown = [label for label, is_shown in zip(labels, targets, strict=True) if is_shown]
        if not shown and self.ensemble.task is Task.PRESENCE:
            shown = [self.ensemble.labels[0]]
        return ", ".join(shown) or NOTHING

    def root_mean_square_error(self, rows: Sequence[int]) -> float | None:
        """Return the error of a regression over some images; None for another task."""
        if self.data is None or self.ensemble.task is not Task.REGRESSION or not rows:
            return None
        squares = [
            (self.predictions[row].values[label] - target) ** 2
            for row in rows
            for label, target in zip(
                self.ensemble.score_labels, self.data.targets[row].tolist(), strict=True
            )
        ]
        return math.sqrt(sum(squares) / len(squares))


def decision_changes(
    before: Answers, after: Answers, paths: Sequence[Path], name: str, *, tolerance: float = 0.0
) -> DecisionChanges:
    """Compare two ensembles' predictions for the same images.

    Args:
        before: the first ensemble's.
        after: the second ensemble's.
        paths: the images.
        name: name of the data.
        tolerance: for a regression, the largest change of a value that counts as no change.

    Raises:
        RequestError: only one of the ensembles is a regression.
    """
    tasks = before.ensemble.task, after.ensemble.task
    is_regression = Task.REGRESSION in tasks
    if is_regression and tasks[0] is not tasks[1]:
        raise RequestError(
            f"one archive's task is {tasks[0]}, the other's {tasks[1]}: their answers cannot be "
            "compared, so leave out --data"
        )
    pairs = list(zip(before.predictions, after.predictions, strict=True))
    errors = {
        str(path): one.error or other.error or ""
        for path, (one, other) in zip(paths, pairs, strict=True)
        if one.error or other.error
    }
    rows = [row for row, path in enumerate(paths) if str(path) not in errors]
    differences = {row: _difference(*pairs[row]) for row in rows}
    changes = tuple(
        _change(before, after, row, paths[row])
        for row in rows
        if (
            differences[row] > tolerance
            if is_regression
            else _decision(pairs[row][0]) != _decision(pairs[row][1])
        )
    )
    is_judged = before.data is not None and not is_regression
    right = [(before.is_right(row), after.is_right(row)) for row in rows]
    rmse = before.root_mean_square_error(rows), after.root_mean_square_error(rows)
    return DecisionChanges(
        data=name,
        num_images=len(rows),
        changes=changes,
        errors=errors,
        right_before=sum(bool(was) for was, _ in right) if is_judged else None,
        right_after=sum(bool(now) for _, now in right) if is_judged else None,
        test=McNemar.of(right.count((True, False)), right.count((False, True)))
        if is_judged
        else None,
        root_mean_square_errors=None if rmse[0] is None or rmse[1] is None else (rmse[0], rmse[1]),
        largest_difference=max(differences.values(), default=0.0),
        has_groups=before.data is not None and before.data.groups is not None,
        is_regression=is_regression,
    )


def _change(before: Answers, after: Answers, row: int, path: Path) -> DecisionChange:
    one, other = before.predictions[row], after.predictions[row]
    return DecisionChange(
        image=str(path),
        before=_decision(one),
        after=_decision(other),
        score_before=one.score,
        score_after=other.score,
        truth=after.truth(row),
        was_right=before.is_right(row),
        is_right=after.is_right(row),
    )


def _decision(prediction: Prediction) -> str:
    """Return a decision as text."""
    if prediction.values:
        return _values(prediction.values)
    if prediction.raw.get("abstained"):
        return ABSTAINED
    return ", ".join(prediction.labels) or prediction.label or NOTHING


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {value:.4g}" for label, value in values.items())


def _difference(before: Prediction, after: Prediction) -> float:
    """Return the largest change among the scores, or values, that both predictions have."""
    one, other = before.scores or before.values, after.scores or after.values
    return max(
        (abs(other[label] - value) for label, value in one.items() if label in other), default=0.0
    )
