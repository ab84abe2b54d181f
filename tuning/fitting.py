"""What is learned from labelled data: temperatures, weights and fitted models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from ..handlers.base.tasks import Task
from ..handlers.policies import (
    Ballot,
    ClassWeightsModel,
    DawidSkeneModel,
    FittedModel,
    Panel,
    StackingModel,
)

_SMALLEST_TEMPERATURE, _LARGEST_TEMPERATURE = 0.05, 20.0
_MAX_LOG_ODDS = 6.0


@dataclass(frozen=True, eq=False)
class Outputs:
    """What all members say about N labelled samples.

    Attributes:
        panel: the members, with the spec's weights and thresholds.
        scores: (M, N, C) float32.
        logits: same shape, NaN for members that give none.
        targets: (N, C) bool, or float32 for regression.
    """

    panel: Panel
    scores: Tensor
    logits: Tensor
    targets: Tensor

    def rows(self, chosen: Tensor) -> Outputs:
        """Some of the samples."""
        return replace(
            self,
            scores=self.scores[:, chosen],
            logits=self.logits[:, chosen],
            targets=self.targets[chosen],
        )

    def one_sided_labels(self) -> list[int]:
        """Positions of the score labels that no sample has, or that all samples have.

        Nothing can be learned about such a label; a regression has none.
        """
        if self.panel.task is Task.REGRESSION:
            return []
        same = self.targets.all(dim=0) | ~self.targets.any(dim=0)
        positions: list[int] = same.nonzero().flatten().tolist()
        return positions

    def ballot(self) -> Ballot:
        """For policies."""
        whole = bool(self.logits.isfinite().all())
        return self.panel.ballot(self.scores, self.logits if whole else None)


@dataclass(frozen=True, eq=False)
class Learned:
    """What was fitted, to be applied to other samples.

    Attributes:
        temperatures: M numbers by which logits are divided, on top of the spec's.
        weights: (M,) voting weights.
        models: name -> fitted model.
        levels: (M, 101) each member's calibrated scores that 0, 1 ... 100 % of the samples without
            the label stay below; presence only.
    """

    temperatures: tuple[float, ...]
    weights: Tensor
    models: Mapping[str, FittedModel] = field(default_factory=dict)
    levels: Tensor | None = None

    def apply(self, outputs: Outputs) -> Outputs:
        """The outputs, calibrated and with the learned weights."""
        scores, logits = outputs.scores.clone(), outputs.logits.clone()
        for index, temperature in enumerate(self.temperatures):
            if temperature != 1:
                logits[index] = outputs.logits[index] / temperature
                scores[index] = _probabilities(logits[index], outputs.panel.task)
        panel = replace(outputs.panel, weights=self.weights.to(torch.float32))
        return replace(outputs, panel=panel, scores=scores, logits=logits)


def learn(outputs: Outputs, *, calibrate: bool = True) -> Learned:
    """Fit everything on one set of samples."""
    task = outputs.panel.task
    temperatures = tuple(
        fit_temperature(logits, outputs.targets, task)
        if calibrate and task is not Task.REGRESSION and bool(logits.isfinite().all())
        else 1.0
        for logits in outputs.logits
    )
    plain = Learned(temperatures, outputs.panel.weights)
    calibrated = plain.apply(outputs)
    levels = _levels(calibrated) if task is Task.PRESENCE else None
    return Learned(temperatures, fit_weights(calibrated), _models(calibrated), levels)


def _levels(outputs: Outputs) -> Tensor:
    negatives = outputs.scores[:, ~outputs.targets[:, 0], 0].double().numpy()
    return torch.from_numpy(np.quantile(negatives, np.linspace(0, 1, 101), axis=1).T.copy())


def fit_temperature(logits: Tensor, targets: Tensor, task: Task) -> float:
    """The temperature of least negative log likelihood (Guo et al. 2017).

    Args:
        logits: (N, C) float32.
        targets: (N, C) bool.
        task: any but regression.
    """
    # NumPy, as it does not wake threads for each of many small steps.
    wide, truth = logits.double().numpy(), targets.numpy()

    def loss(log_temperature: float) -> float:
        scaled = wide / math.exp(log_temperature)
        if task is Task.CLASSIFICATION:
            return float((logsumexp(scaled, axis=1) - scaled[truth]).mean())
        return float((np.logaddexp(0, scaled) - scaled * truth).mean())

    bounds = (math.log(_SMALLEST_TEMPERATURE), math.log(_LARGEST_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    return round(math.exp(found.x), 6)


def fit_weights(outputs: Outputs) -> Tensor:
    """(M,) voting weights.

    Log-odds of each member's accuracy, optimal for members that err independently (Kuncheva 2004,
    theorem 4.1), none below 0; regression: inverse mean squared error.
    """
    if outputs.panel.task is Task.REGRESSION:
        error = (outputs.scores - outputs.targets).double().square().mean(dim=(1, 2))
        weights = 1 / error.clamp(min=1e-12)
        return (weights / weights.sum()).float()
    right = (outputs.ballot().votes == outputs.targets).all(dim=2).double()
    # One sample more of each kind (Laplace), so that a member without errors stays finite.
    accuracy = (right.sum(dim=1) + 1) / (right.shape[1] + 2)
    weights = torch.logit(accuracy).clamp(0, _MAX_LOG_ODDS)
    return (weights if bool((weights > 0).any()) else torch.ones_like(weights)).float()


def _models(outputs: Outputs) -> dict[str, FittedModel]:
    models: dict[str, FittedModel] = {"stacking": fit_stacking(outputs)}
    task = outputs.panel.task
    if task in (Task.CLASSIFICATION, Task.PRESENCE):
        models["dawid_skene"] = fit_dawid_skene(outputs)
    if task is not Task.REGRESSION:
        models["per_class_weights"] = fit_class_weights(outputs)
    return models


def fit_stacking(outputs: Outputs) -> StackingModel:
    """Logistic regression of scikit-learn on all members' scores; ridge for regression."""
    members, samples, labels = outputs.scores.shape
    features = outputs.scores.permute(1, 0, 2).reshape(samples, members * labels).double().numpy()
    names = outputs.panel.member_names
    if outputs.panel.task is Task.REGRESSION:
        linear = Ridge().fit(features, outputs.targets.double().numpy())
        return _stacking(names, linear.coef_.reshape(labels, -1), linear.intercept_.reshape(-1))
    if outputs.panel.task is Task.CLASSIFICATION:
        truth = outputs.targets.float().argmax(dim=1).numpy()
        model = LogisticRegression(max_iter=2000).fit(features, truth)
        return _with_all_classes(names, model, labels)
    rows, intercepts = [], []
    for label in range(labels):
        truth = outputs.targets[:, label].numpy()
        if truth.all() or not truth.any():
            # Nothing to learn from one kind of answer: the members' mean log-odds stand in.
            rows.append(torch.zeros(members * labels))
            intercepts.append(6.0 if truth.all() else -6.0)
            continue
        model = LogisticRegression(max_iter=2000).fit(features, truth)
        rows.append(torch.tensor(model.coef_[0]))
        intercepts.append(float(model.intercept_[0]))
    return StackingModel(names, torch.stack(rows).float(), torch.tensor(intercepts))


def _stacking(names: tuple[str, ...], coefficients: object, intercept: object) -> StackingModel:
    return StackingModel(
        names,
        torch.as_tensor(coefficients, dtype=torch.float32),
        torch.as_tensor(intercept, dtype=torch.float32),
    )


def _with_all_classes(
    names: tuple[str, ...], model: LogisticRegression, labels: int
) -> StackingModel:
    """A class that the samples lack gets a row that never wins."""
    if len(model.classes_) == 2 and labels == 2:
        return _stacking(names, model.coef_, model.intercept_)
    coefficients = torch.zeros((labels, model.coef_.shape[1]))
    intercept = torch.full((labels,), -1e4)
    found = torch.tensor(model.coef_, dtype=torch.float32)
    offsets = torch.tensor(model.intercept_, dtype=torch.float32)
    if len(model.classes_) == 2:
        found = torch.cat([torch.zeros_like(found), found])
        offsets = torch.cat([torch.zeros_like(offsets), offsets])
    coefficients[model.classes_.tolist()] = found
    intercept[model.classes_.tolist()] = offsets
    return StackingModel(names, coefficients, intercept)


def fit_dawid_skene(outputs: Outputs) -> DawidSkeneModel:
    """Confusion matrices and prior, counted on the labels (Dawid and Skene 1979, known truth).

    One vote of each kind is added (Laplace), so that no vote is held impossible.
    """
    votes, targets = outputs.ballot().votes, outputs.targets
    if outputs.panel.task is Task.PRESENCE:
        votes = torch.cat([~votes, votes], dim=2)
        targets = torch.cat([~targets, targets], dim=1)
    counts = torch.einsum("nj,mnl->mjl", targets.double(), votes.double()) + 1
    prior = targets.double().sum(dim=0) + 1
    return DawidSkeneModel(
        outputs.panel.member_names,
        (counts / counts.sum(dim=2, keepdim=True)).float(),
        (prior / prior.sum()).float(),
    )


def fit_class_weights(outputs: Outputs) -> ClassWeightsModel:
    """For each label every member's F1 score: how well it finds that very label."""
    votes, targets = outputs.ballot().votes.double(), outputs.targets.double()
    hits = torch.einsum("mnc,nc->mc", votes, targets)
    f1 = 2 * hits / (votes.sum(dim=1) + targets.sum(dim=0)).clamp(min=1)
    return ClassWeightsModel(outputs.panel.member_names, (f1 + 1e-3).float())


def _probabilities(logits: Tensor, task: Task) -> Tensor:
    return logits.softmax(dim=-1) if task is Task.CLASSIFICATION else logits.sigmoid()
