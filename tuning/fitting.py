"""Fit temperatures, voting weights and the models of fitted policies on labelled samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_MAX_LOG_ODDS = 6.0
"""The largest voting weight, and the log-odds of an answer that never changes."""

_LOG_ODDS_OF_MISSING_CLASS = -1e4
"""Low enough that a class without samples never wins."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The scores that M members give to N labelled samples.

    Attributes:
        panel: the members, with the spec's weights and thresholds.
        scores: (M, N, C) float32.
        logits: (M, N, C) float32, NaN for members without logits.
        targets: (N, C) bool, or float32 for regression.
        groups: (N,) int64 number of the group of each sample; None: every sample is a group of its
            own. Samples of one group, such as the frames of a video, are not independent.
    """

    panel: Panel
    scores: Tensor
    logits: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def rows(self, indices: Tensor) -> Outputs:
        """Select samples by their row numbers."""
        return replace(
            self,
            scores=self.scores[:, indices],
            logits=self.logits[:, indices],
            targets=self.targets[indices],
            groups=None if self.groups is None else self.groups[indices],
        )

    def one_sided_labels(self) -> list[int]:
        """Positions of the score labels that no sample has, or that all samples have.

        Such a label cannot be learned. A regression has no such labels.
        """
        if self.panel.task is Task.REGRESSION:
            return []
        is_one_sided = self.targets.all(dim=0) | ~self.targets.any(dim=0)
        positions: list[int] = is_one_sided.nonzero().flatten().tolist()
        return positions

    def ballot(self) -> Ballot:
        """The members' scores as policies take them."""
        all_logits = bool(self.logits.isfinite().all())
        return self.panel.ballot(self.scores, self.logits if all_logits else None)


@dataclass(frozen=True, eq=False)
class FittedParameters:
    """The parameters that were fitted on some samples, to be applied to others.

    Attributes:
        temperatures: M numbers by which logits are divided, on top of the spec's temperatures; 1
            leaves a member as it is.
        weights: (M,) voting weights.
        models: name of a fitted policy -> its model.
        negative_quantiles: (M, 101) for each member the 0, 1, ... 100 % quantiles of its calibrated
            scores on samples without the label; None except for presence.
    """

    temperatures: tuple[float, ...]
    weights: Tensor
    models: Mapping[str, FittedModel] = field(default_factory=dict)
    negative_quantiles: Tensor | None = None

    def apply(self, outputs: Outputs) -> Outputs:
        """Calibrate the members' scores with the temperatures, and set the voting weights."""
        scores, logits = outputs.scores.clone(), outputs.logits.clone()
        for index, temperature in enumerate(self.temperatures):
            if temperature != 1:
                logits[index] = outputs.logits[index] / temperature
                scores[index] = probabilities(logits[index], outputs.panel.task)
        panel = replace(outputs.panel, weights=self.weights.to(torch.float32))
        return replace(outputs, panel=panel, scores=scores, logits=logits)


def fit_parameters(outputs: Outputs, is_calibrated: Sequence[bool]) -> FittedParameters:
    """Fit temperatures, weights and models on one set of samples.

    Args:
        outputs: the members' scores on these samples.
        is_calibrated: for each member whether a temperature is fitted.
    """
    task = outputs.panel.task
    temperatures = tuple(
        fit_temperature(logits, outputs.targets, task) if calibrated else 1.0
        for logits, calibrated in zip(outputs.logits, is_calibrated, strict=True)
    )
    calibrated = FittedParameters(temperatures, outputs.panel.weights).apply(outputs)
    quantiles = _negative_quantiles(calibrated) if task is Task.PRESENCE else None
    return FittedParameters(temperatures, fit_weights(calibrated), _models(calibrated), quantiles)


def members_with_logits(outputs: Outputs) -> list[bool]:
    """For each member whether a temperature can be fitted, which takes logits."""
    if outputs.panel.task is Task.REGRESSION:
        return [False] * len(outputs.logits)
    return [bool(logits.isfinite().all()) for logits in outputs.logits]


def fit_temperature(logits: Tensor, targets: Tensor, task: Task) -> float:
    """Fit the temperature of least negative log likelihood (Guo et al. 2017).

    Args:
        logits: (N, C) float32.
        targets: (N, C) bool.
        task: any task except regression.
    """
    # NumPy, as it does not wake threads for each of many small steps.
    wide, truth = logits.double().numpy(), targets.numpy()

    def loss(log_temperature: float) -> float:
        scaled = wide / math.exp(log_temperature)
        if task is Task.CLASSIFICATION:
            return float((logsumexp(scaled, axis=1) - scaled[truth]).mean())
        return float((np.logaddexp(0, scaled) - scaled * truth).mean())

    bounds = (math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE))
    minimum = minimize_scalar(loss, bounds=bounds, method="bounded")
    return round(math.exp(minimum.x), 6)


def fit_weights(outputs: Outputs) -> Tensor:
    """Fit (M,) voting weights.

    The weight of a member is the log-odds of its balanced accuracy, at least 0. Log-odds of the
    accuracy are optimal for members that err independently of one another (Kuncheva 2004, theorem
    4.1). The balanced accuracy takes every label as equally frequent: if one image in a thousand
    shows a label, a member that never finds it has an accuracy of 0.999, but a balanced accuracy of
    0.5 and so no weight. For regression the weight is the inverse mean squared error.
    """
    if outputs.panel.task is Task.REGRESSION:
        error = (outputs.scores - outputs.targets).double().square().mean(dim=(1, 2))
        weights = 1 / error.clamp(min=1e-12)
        return (weights / weights.sum()).float()
    weights = torch.logit(_balanced_accuracy(outputs)).clamp(0, _MAX_LOG_ODDS)
    return (weights if bool((weights > 0).any()) else torch.ones_like(weights)).float()


def _balanced_accuracy(outputs: Outputs) -> Tensor:
    """(M,) mean share of right votes over the labels, and for yes-or-no labels over both answers.

    One right and one wrong vote are added (Laplace), so that no share is 0 or 1. They are added to
    as many samples as there would be if every label had as many as the rarest one.
    """
    targets = outputs.targets
    is_right = (outputs.ballot().votes == targets).double()
    if outputs.panel.task is Task.CLASSIFICATION:
        num_right = torch.einsum("mn,nc->mc", is_right.prod(dim=2), targets.double())
        num_samples = targets.sum(dim=0)
    else:
        answers = torch.stack([targets, ~targets]).double()
        num_right = torch.einsum("mnc,anc->mac", is_right, answers).flatten(1)
        num_samples = answers.sum(dim=1).flatten()
    is_present = num_samples > 0
    shares = (num_right[:, is_present] / num_samples[is_present]).mean(dim=1)
    balanced_samples = num_samples[is_present].min() * is_present.sum()
    return (shares * balanced_samples + 1) / (balanced_samples + 2)


def _negative_quantiles(outputs: Outputs) -> Tensor:
    negatives = outputs.scores[:, ~outputs.targets[:, 0], 0].double().numpy()
    return torch.from_numpy(np.quantile(negatives, np.linspace(0, 1, 101), axis=1).T.copy())


def _models(outputs: Outputs) -> dict[str, FittedModel]:
    models: dict[str, FittedModel] = {"stacking": fit_stacking(outputs)}
    task = outputs.panel.task
    if task in (Task.CLASSIFICATION, Task.PRESENCE):
        models["dawid_skene"] = fit_dawid_skene(outputs)
    if task is not Task.REGRESSION:
        models["per_class_weights"] = fit_class_weights(outputs)
    return models


def fit_stacking(outputs: Outputs) -> StackingModel:
    """Fit scikit-learn's logistic regression on all members' scores; for regression, ridge."""
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
            # Logistic regression takes two classes. All samples agree on this label, so the model
            # always gives their answer, whatever the members' scores are.
            rows.append(torch.zeros(members * labels))
            intercepts.append(_MAX_LOG_ODDS if truth.all() else -_MAX_LOG_ODDS)
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
    """Give a class that no sample has a row that never wins."""
    if len(model.classes_) == 2 and labels == 2:
        return _stacking(names, model.coef_, model.intercept_)
    coefficients = torch.zeros((labels, model.coef_.shape[1]))
    intercept = torch.full((labels,), _LOG_ODDS_OF_MISSING_CLASS)
    rows = torch.tensor(model.coef_, dtype=torch.float32)
    offsets = torch.tensor(model.intercept_, dtype=torch.float32)
    if len(model.classes_) == 2:
        # Of two classes scikit-learn keeps the row of the second one; the first one's is 0.
        rows = torch.cat([torch.zeros_like(rows), rows])
        offsets = torch.cat([torch.zeros_like(offsets), offsets])
    coefficients[model.classes_.tolist()] = rows
    intercept[model.classes_.tolist()] = offsets
    return StackingModel(names, coefficients, intercept)


def fit_dawid_skene(outputs: Outputs) -> DawidSkeneModel:
    """Count confusion matrices and prior on the labels (Dawid and Skene 1979, with known truth).

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
    """Weigh each member for each label by its F1 score on that label."""
    votes, targets = outputs.ballot().votes.double(), outputs.targets.double()
    hits = torch.einsum("mnc,nc->mc", votes, targets)
    f1 = 2 * hits / (votes.sum(dim=1) + targets.sum(dim=0)).clamp(min=1)
    return ClassWeightsModel(outputs.panel.member_names, (f1 + 1e-3).float())


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Turn (..., C) logits into scores: softmax for classification, else sigmoid."""
    return logits.softmax(dim=-1) if task is Task.CLASSIFICATION else logits.sigmoid()
