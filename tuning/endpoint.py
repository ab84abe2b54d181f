"""The metrics of tuning, from what a running endpoint answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..handlers.base.errors import SampleError, ServerError
from ..handlers.base.tasks import Task
from ..serving.client import InferenceClient, Prediction
from ..serving.image_sources import read
from .intervals import with_intervals
from .labelled_data import Answering, LabelledData
from .metrics import Metrics, compute_metrics

COMBINED = "combined"


@dataclass(frozen=True)
class Served:
    """What a model on a server answers; takes the place of its spec."""

    task: Task
    labels: tuple[str, ...]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Served:
        """From the describe answer.

        Raises:
            ServerError: it is that of another kind of model.
        """
        try:
            return cls(Task(described["task"]), tuple(described["labels"]))
        except (KeyError, ValueError, TypeError) as error:
            raise ServerError(
                "the model does not describe itself as an ensemble; name its spec with --spec"
            ) from error

    @property
    def score_labels(self) -> tuple[str, ...]:
        """Labels of the score columns: for presence the positive label alone."""
        return self.labels[1:] if self.task is Task.PRESENCE else self.labels


def evaluate_endpoint(
    client: InferenceClient,
    name: str,
    spec: Answering,
    data: LabelledData,
    *,
    policy: str | None = None,
    version: str | None = None,
    on_image: Callable[[int], None] = lambda total: None,
) -> dict[str, Metrics]:
    """Metrics of a policy, and of each member, as a client sees them.

    For the same policy and images they are those that tuning calls in sample.

    Args:
        client: of the server.
        name: the model.
        spec: for its task and labels.
        data: labelled images.
        policy: instead of the default one.
        version: instead of the default one.
        on_image: called with the number of images, after each.

    Raises:
        RequestError: the server refuses a request.
        ServerError: no answer, or a failure of the server.
    """
    options = {"include": "scores"} | ({"policy": policy} if policy else {})
    predictions = []
    images = read([str(path) for path in data.paths])
    for prediction in client.predict_all(name, images, version=version, options=options):
        predictions.append(prediction)
        on_image(len(data.paths))
    return metrics_of_predictions(spec, data, predictions)


def metrics_of_predictions(
    spec: Answering, data: LabelledData, predictions: Sequence[Prediction]
) -> dict[str, Metrics]:
    """Metrics of the combined answer and of the members, from what an endpoint said.

    Members that did not answer every image are left out.

    Args:
        spec: for labels; `Served` has those of a model on a server.
        data: the images that were asked about.
        predictions: one for each, asked with ``include=scores``.

    Raises:
        SampleError: an image has no answer.
        ServerError: there are more or fewer answers than images.
    """
    if len(predictions) != len(data.paths):
        raise ServerError(f"{len(predictions)} answers to {len(data.paths)} images")
    for path, prediction in zip(data.paths, predictions, strict=True):
        if prediction.error is not None:
            raise SampleError(f"{path}: {prediction.error}", sample=str(path))
    columns: dict[str, list[Prediction]] = {COMBINED: list(predictions)}
    for member in predictions[0].members:
        answers = [each.members[member] for each in predictions if member in each.members]
        if len(answers) == len(predictions):
            columns[member] = answers
    found = {}
    for name, answers in columns.items():
        scores, decisions = _tensors(spec, answers)
        plain = compute_metrics(scores, decisions, data.targets, spec.task)
        found[name] = with_intervals(plain, scores, decisions, data.targets, spec.task)
    return found


def _tensors(spec: Answering, answers: Sequence[Prediction]) -> tuple[Tensor, Tensor | None]:
    labels = spec.score_labels
    if spec.task is Task.REGRESSION:
        return torch.tensor([[a.values[label] for label in labels] for a in answers]), None
    scores = torch.tensor([[answer.scores[label] for label in labels] for answer in answers])
    decisions = [[label in answer.labels for label in labels] for answer in answers]
    return scores, torch.tensor(decisions)
