"""Compute the metrics of tuning from the answers of a running endpoint."""

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
"""Name of the row of the ensemble's own answer, beside those of its members."""


@dataclass(frozen=True)
class Served:
    """Task and labels of a model as a server describes it, where its spec is not at hand."""

    task: Task
    labels: tuple[str, ...]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Served:
        """Read task and labels from a server's description of a model.

        Raises:
            ServerError: the model is no ensemble.
        """
        try:
            return cls(Task(described["task"]), tuple(described["labels"]))
        except (KeyError, ValueError, TypeError) as error:
            raise ServerError(
                "the model does not describe itself as an ensemble; name its spec with --spec"
            ) from error

    @property
    def score_labels(self) -> tuple[str, ...]:
        """Labels that have a score: for presence the positive label alone, otherwise all."""
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
    """Measure a policy and each member on a server, as a client sees them.

    On the images that a policy was tuned on, the metrics equal those that tuning calls in sample.

    Args:
        client: a client of the server.
        name: name of the model.
        spec: task and labels of the model.
        data: labelled images.
        policy: name or text of the policy; None: the model's default one.
        version: version of the model; None: the default one.
        on_image: called with the number of images, after each.

    Returns:
        `COMBINED` and the names of the members -> their metrics.

    Raises:
        RequestError: the server refuses a request.
        ServerError: the server does not answer, or fails.
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
    """Compute the metrics of the ensemble and of its members from an endpoint's answers.

    Members that did not answer every image are left out.

    Args:
        spec: task and labels of the model.
        data: the images that were sent.
        predictions: one for each image, with scores (``include=scores``).

    Returns:
        `COMBINED` and the names of the members -> their metrics.

    Raises:
        SampleError: the answer to an image is an error.
        ServerError: there are more or fewer answers than images.
    """
    if len(predictions) != len(data.paths):
        raise ServerError(f"{len(predictions)} answers to {len(data.paths)} images")
    for path, prediction in zip(data.paths, predictions, strict=True):
        if prediction.error is not None:
            raise SampleError(f"{path}: {prediction.error}", sample=str(path))
    answers_by_name: dict[str, list[Prediction]] = {COMBINED: list(predictions)}
    for member in predictions[0].members:
        answers = [each.members[member] for each in predictions if member in each.members]
        if len(answers) == len(predictions):
            answers_by_name[member] = answers
    metrics_by_name = {}
    for name, answers in answers_by_name.items():
        scores, decisions = _tensors(spec, answers)
        metrics = compute_metrics(scores, decisions, data.targets, spec.task)
        metrics_by_name[name] = with_intervals(
            metrics, scores, decisions, data.targets, spec.task, groups=data.groups
        )
    return metrics_by_name


def _tensors(spec: Answering, answers: Sequence[Prediction]) -> tuple[Tensor, Tensor | None]:
    """(N, C) scores, or values of a regression, and (N, C) decisions; None for regression."""
    labels = spec.score_labels
    if spec.task is Task.REGRESSION:
        return torch.tensor([[a.values[label] for label in labels] for a in answers]), None
    scores = torch.tensor([[answer.scores[label] for label in labels] for answer in answers])
    decisions = [[label in answer.labels for label in labels] for answer in answers]
    return scores, torch.tensor(decisions)
