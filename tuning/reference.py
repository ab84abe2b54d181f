"""Compare the scores of an ensemble with those of a user's own inference code, image by image."""

from __future__ import annotations

import runpy
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..handlers.base.errors import RequestError
from ..handlers.base.suggestions import nearest
from ..handlers.base.tasks import Task
from ..serving.client import Prediction

Reference = Callable[[Path], Mapping[str, float]]
"""A function from the path of an image to scores by label."""


@dataclass(frozen=True)
class Difference:
    """How the ensemble and the reference differ on one image.

    Attributes:
        image: path of the image.
        largest: the largest absolute difference of a label's score.
        label: the label whose scores differ most.
        scores: the ensemble's scores, by label.
        reference: the reference's scores, by label.
        same_decision: whether both decide alike: the same best label; for presence and several
            labels, the same side of 0.5 for every label.
    """

    image: str
    largest: float
    label: str
    scores: Mapping[str, float]
    reference: Mapping[str, float]
    same_decision: bool


@dataclass(frozen=True)
class Comparison:
    """The differences on all images, the largest first."""

    differences: tuple[Difference, ...]

    @property
    def largest(self) -> float:
        """The largest difference of a score on any image."""
        return max(each.largest for each in self.differences)

    @property
    def median(self) -> float:
        """The median over the images of the largest difference of a score."""
        return statistics.median(each.largest for each in self.differences)

    @property
    def num_same_decisions(self) -> int:
        """The number of images on which both decide alike."""
        return sum(each.same_decision for each in self.differences)


def load_reference(text: str, labels: Sequence[str]) -> Reference:
    """Load the user's function, and check what it returns each time it is called.

    Args:
        text: ``FILE.py:FUNCTION``. The function takes a `pathlib.Path` and returns scores: a
            mapping from label to score, or one number for each label in the spec's order (a list,
            an array, a tensor).
        labels: the labels that have scores, in the spec's order.

    Raises:
        RequestError: there is no such file or function, or the file cannot be run.
    """
    file, separator, name = text.rpartition(":")
    if not separator or not file:
        raise RequestError(f"--reference {text}: write FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise RequestError(f"--reference {text}: there is no file {file}")
    try:
        content = runpy.run_path(file)
    except Exception as error:
        raise RequestError(f"--reference {text}: {_describe(error, file)}") from error
    function = content.get(name)
    if not callable(function):
        functions = [key for key, value in content.items() if callable(value) and key[:1] != "_"]
        raise RequestError(
            f"--reference {text}: {file} has no function '{name}'{nearest(name, functions)}"
        )

    def reference(image: Path) -> Mapping[str, float]:
        try:
            returned = function(image)
        except Exception as error:
            raise RequestError(f"{name} on {image}: {_describe(error, file)}") from error
        return _by_label(returned, labels, f"{name} on {image}")

    return reference


def compare(
    predictions: Sequence[Prediction],
    images: Sequence[Path],
    reference: Reference,
    task: Task,
    *,
    member: str | None = None,
) -> Comparison:
    """Compare predictions with the reference.

    Args:
        predictions: one for each image, with scores (``include=["scores"]``) or, for a regression,
            values.
        images: paths of the images.
        reference: gives the scores that are expected.
        task: of the ensemble, which says what a decision is.
        member: compare this member's scores; None: the ensemble's.

    Raises:
        RequestError: the reference fails, or a prediction has no scores.
    """
    differences = _differences(predictions, images, reference, task, member)
    return Comparison(tuple(sorted(differences, key=lambda each: -each.largest)))


def _differences(
    predictions: Sequence[Prediction],
    images: Sequence[Path],
    reference: Reference,
    task: Task,
    member: str | None,
) -> Iterator[Difference]:
    for prediction, image in zip(predictions, images, strict=True):
        if prediction.error is not None:
            raise RequestError(f"{image}: {prediction.error}")
        if member is not None and member not in prediction.members:
            raise RequestError(
                f"--member {member}: the members are {', '.join(prediction.members)}"
                f"{nearest(member, prediction.members)}"
            )
        answer = prediction if member is None else prediction.members[member]
        scores = answer.scores or answer.values
        expected = reference(image)
        by_label = {label: abs(scores[label] - expected[label]) for label in scores}
        label = max(by_label, key=by_label.__getitem__)
        same = _decision(scores, task) == _decision(expected, task)
        yield Difference(str(image), by_label[label], label, scores, expected, same)


def _by_label(returned: Any, labels: Sequence[str], where: str) -> Mapping[str, float]:
    """Turn what the user's function returned into scores by label."""
    if isinstance(returned, Mapping):
        missing = [label for label in labels if label not in returned]
        if missing:
            raise RequestError(f"{where}: it returned no score for label '{missing[0]}'")
        return {label: float(returned[label]) for label in labels}
    detached = returned.detach().cpu() if hasattr(returned, "detach") else returned
    try:
        values = np.asarray(detached, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise RequestError(
            f"{where}: it returned {type(returned).__name__}; return scores by label, or one "
            "number for each label"
        ) from None
    if len(values) != len(labels):
        raise RequestError(
            f"{where}: it returned {len(values)} numbers for {len(labels)} labels "
            f"({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"
        )
    return dict(zip(labels, values.tolist(), strict=True))


def _describe(error: BaseException, file: str) -> str:
    """Describe an error, with the last line of the user's file in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(file)]
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {error}"


def _decision(scores: Mapping[str, float], task: Task) -> frozenset[str]:
    """The labels that the scores decide for: the best one, or all from 0.5 on."""
    match task:
        case Task.REGRESSION:
            return frozenset()
        case Task.CLASSIFICATION:
            return frozenset([max(scores, key=scores.__getitem__)])
        case _:
            return frozenset(label for label, score in scores.items() if score >= 0.5)
