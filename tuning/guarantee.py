"""Guarantee a metric on new images, with a confidence that holds for finitely many images.

The thresholds of one policy are tested one after another on held-out images, from the strictest
to the least strict, until the first one fails (fixed sequence testing in Learn then Test:
Angelopoulos, Bates, Candès, Jordan and Lei 2021). Each test asks whether so few errors would be
likely if the metric missed its target. A threshold that misses the target passes its test with a
probability of at most ``1 - confidence``. That holds for the first such threshold of the sequence,
and those behind it are tested only if it passes. So the probability that any threshold that passed
misses the target is at most ``1 - confidence``, however many are tested, and any of them may be
taken.

This takes for granted:

- Temperatures, weights, models, the policy and the order of its thresholds were chosen without the
  held-out images, and no member was trained on them.
- The held-out images, or their groups, are drawn independently of one another.
- New images come from the same source.

A metric that is a share of independent images has an exact binomial test. Where the errors of
several labels or images go together, in one image of a multilabel task or in one group such as the
frames of a video, only the mean error of each image or group is used, by the bound of Hoeffding and
Bentkus, which holds for all independent numbers from 0 to 1. What is guaranteed is then the mean
over images or groups, each of which counts once. Metrics that are no mean of errors in this sense,
such as RMSE, have a bootstrap test, which is an approximation and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from ..handlers.policies import Outcome
from .intervals import bootstrap
from .metrics import compute_metrics
from .risk_bounds import (
    Method,
    losses_of_labels,
    losses_of_units,
    max_errors,
    min_trials,
    p_value,
    upper_bound,
)
from .targets import Target

_MIN_BOOTSTRAP_UNITS = 30
"""With fewer images or groups, intervals by the bootstrap are markedly too narrow."""

_BOOTSTRAP_DRAWS = 2000
_CONDITIONAL_ON_LABEL = frozenset({"recall", "specificity", "false_positive_rate"})
_MEANS_OVER_LABELS = frozenset({"recall", "precision"})
"""Metrics that classification takes as a mean over the labels."""

_COUNTED = {
    "recall": "with the label",
    "precision": "that get the label",
    "specificity": "without the label",
    "false_positive_rate": "without the label",
    "f1": "that have or get the label",
}
"""Which images a metric is a share of. Metrics that are not listed are shares of all images."""


@dataclass(frozen=True)
class Evidence:
    """What held-out images show about the target at one threshold.

    Attributes:
        value: the metric on these images. If images or groups count once each, it is their mean.
        bound: the one-sided confidence bound of the metric on new images.
        p_value: bound of the probability of so good a value if the metric misses the target.
        num_units: number of images, or of groups, that the metric was computed from.
    """

    value: float
    bound: float
    p_value: float
    num_units: int


@dataclass(frozen=True)
class Claim:
    """That a metric reaches a bound on new images; it knows the test that can show this.

    Attributes:
        target: a target with a bound.
        task: task of the ensemble.
        confidence: the probability with which the guarantee is to hold.
        is_grouped: whether samples belong to groups.
    """

    target: Target
    task: Task
    confidence: float
    is_grouped: bool

    def __str__(self) -> str:
        return f"{self.target} with {percent(self.confidence)} confidence"

    @property
    def method(self) -> Method:
        """The test that fits the metric."""
        if self.task is Task.REGRESSION:
            return Method.BOOTSTRAP
        if self.target.metric == "f1":
            is_share = self.task is Task.PRESENCE and not self.is_grouped
            return Method.BINOMIAL if is_share else Method.BOOTSTRAP
        if self.is_mean_over_labels:
            return Method.BOOTSTRAP if self.is_grouped else Method.HOEFFDING_BENTKUS
        if self.is_grouped or self.task is Task.MULTILABEL:
            return Method.HOEFFDING_BENTKUS
        return Method.BINOMIAL

    @property
    def is_mean_over_labels(self) -> bool:
        """Whether the metric is computed for each label of a classification, and then averaged."""
        return self.task is Task.CLASSIFICATION and self.target.metric in _MEANS_OVER_LABELS

    @property
    def max_loss(self) -> float:
        """The mean error at which the target is just reached.

        F1 is ``2q / (1 + q)``, where q is the share of right answers among the images that have or
        get the label; so the error is ``1 - q``.
        """
        bound = self.target.bound
        assert bound is not None
        if self.target.metric == "f1":
            return 1 - bound / (2 - bound)
        return bound if self.target.smaller_is_better else 1 - bound

    @property
    def counted(self) -> str:
        """The images or groups that the metric is computed from, in words."""
        unit, metric = "groups" if self.is_grouped else "images", self.target.metric
        if self.method is Method.BOOTSTRAP:
            return unit
        if self.is_mean_over_labels:
            return f"{unit} (as many of each label as the rarest label has)"
        if self.task is Task.CLASSIFICATION:
            return f"{unit} with an answer" if metric == "accuracy" else unit
        return f"{unit} {_COUNTED[metric]}" if metric in _COUNTED else unit

    @property
    def assumptions(self) -> str:
        """What the guarantee takes for granted, in sentences."""
        unit = "groups" if self.is_grouped else "images"
        text = (
            f"This holds for new images from the same source as the held-out {unit}, if those were "
            "drawn independently of one another and no member was trained on them, and as long as "
            "members, temperatures, weights and fitted models stay as they are."
        )
        if self.method is Method.HOEFFDING_BENTKUS and not self.is_mean_over_labels:
            one = "group" if self.is_grouped else "image"
            text += f" The {self.target.metric} of each {one} is taken, and then the mean of all."
        if self.method.is_approximate:
            text += " The bootstrap is an approximation, good for many images only."
        return text

    @property
    def may_stratify(self) -> bool:
        """Whether held-out samples may be drawn label by label.

        They then have a fixed number of images of each label. That changes nothing for a metric
        that is conditional on the label. All others take the labels as random too.
        """
        is_share_of_label = (
            self.task is Task.PRESENCE and self.target.metric in _CONDITIONAL_ON_LABEL
        )
        is_mean_recall = self.is_mean_over_labels and self.target.metric == "recall"
        return not self.is_grouped and (is_share_of_label or is_mean_recall)

    def num_available(self, targets: Tensor, groups: Tensor | None) -> int:
        """The largest number of images or groups that the metric can be computed from.

        Args:
            targets: (N, C) of the samples.
            groups: (N,) int64 group of each sample; None: each is a group of its own.
        """
        metric, is_counted = self.target.metric, torch.ones(len(targets), dtype=torch.bool)
        if self.method is not Method.BOOTSTRAP:
            if self.is_mean_over_labels and metric == "recall":
                return int(targets.sum(dim=0).min()) * targets.shape[1]
            if self.task is not Task.CLASSIFICATION and metric in _CONDITIONAL_ON_LABEL:
                is_counted = (targets if metric == "recall" else ~targets).any(dim=1)
        return int(is_counted.sum()) if groups is None else len(torch.unique(groups[is_counted]))

    def num_needed(self) -> int | None:
        """The number of images or groups that any guarantee takes; None: no number is enough."""
        if self.method is Method.BOOTSTRAP:
            return _MIN_BOOTSTRAP_UNITS
        return min_trials(self.max_loss, self.confidence)

    def check(self, targets: Tensor, groups: Tensor | None) -> None:
        """Refuse a target that these held-out samples cannot show, whatever the policy.

        Args:
            targets: (N, C) of the held-out samples.
            groups: (N,) int64 group of each; None: each is a group of its own.

        Raises:
            SpecError: there are too few; the message says how many it takes.
        """
        needed, available = self.num_needed(), self.num_available(targets, groups)
        if needed is None:
            raise SpecError(
                f"{self} cannot be guaranteed: no number of images shows that there is never an "
                "exception; ask for less"
            )
        if available < needed:
            raise SpecError(
                f"{self} cannot be guaranteed with so few images: it takes at least {needed} "
                f"held-out {self.counted}, and there are {available}. Add images, hold out more of "
                "them with --held-out, or ask for less with --target or --confidence"
            )

    def evidence(self, outcome: Outcome, targets: Tensor, groups: Tensor | None) -> Evidence:
        """Test the claim on samples that the policy was not fitted on.

        Args:
            outcome: the policy's answers to N samples.
            targets: (N, C) of these samples.
            groups: (N,) int64 group of each; None: each is a group of its own.
        """
        if self.method is Method.BOOTSTRAP:
            return self._bootstrap_evidence(outcome, targets, groups)
        assert outcome.decisions is not None
        losses = self.losses(outcome.decisions, targets, groups)
        mean = float(losses.mean()) if len(losses) else math.nan
        return Evidence(
            value=self._metric_of(mean),
            bound=self._metric_of(upper_bound(losses, self.confidence, self.method)),
            p_value=p_value(losses, self.max_loss, self.method),
            num_units=len(losses),
        )

    def losses(self, decisions: Tensor, targets: Tensor, groups: Tensor | None) -> np.ndarray:
        """One error from 0 to 1 for each image or group that the metric is computed from.

        Args:
            decisions: (N, C) bool.
            targets: (N, C) bool.
            groups: (N,) int64 group of each sample; None: each is a group of its own.
        """
        metric = self.target.metric
        if self.task is Task.CLASSIFICATION:
            is_answered = decisions.sum(dim=1) == 1
            is_wrong = ~(is_answered & (decisions & targets).any(dim=1))
            if metric == "recall":
                return losses_of_labels(targets, is_wrong)
            if metric == "precision":
                return losses_of_labels(decisions & is_answered.unsqueeze(1), is_wrong)
            if metric == "accuracy":
                return losses_of_units(is_answered, is_wrong, groups)
            return losses_of_units(torch.ones_like(is_answered), ~is_answered, groups)
        is_counted = {
            "recall": targets,
            "precision": decisions,
            "specificity": ~targets,
            "false_positive_rate": ~targets,
            "f1": targets | decisions,
        }.get(metric, torch.ones_like(targets))
        return losses_of_units(is_counted, decisions != targets, groups)

    def target_with_margin(self, num_units: int) -> Target:
        """The target that a result on so many images or groups has to reach to pass the test."""
        if self.method is Method.BOOTSTRAP or num_units == 0:
            return self.target
        errors = max(0, max_errors(num_units, self.max_loss, self.confidence))
        return replace(self.target, bound=self._metric_of(errors / num_units))

    def _metric_of(self, loss: float) -> float:
        if self.target.metric == "f1":
            return 2 * (1 - loss) / (2 - loss)
        return loss if self.target.smaller_is_better else 1 - loss

    def _bootstrap_evidence(
        self, outcome: Outcome, targets: Tensor, groups: Tensor | None
    ) -> Evidence:
        metric, smaller = self.target.metric, self.target.smaller_is_better
        scores, decisions = outcome.scores, outcome.decisions
        draws = bootstrap(
            scores,
            decisions,
            targets,
            self.task,
            groups=groups,
            draws=_BOOTSTRAP_DRAWS,
            with_areas=False,
        )[metric]
        draws = np.nan_to_num(draws, nan=np.inf if smaller else -np.inf)
        bound = self.target.bound
        is_missed = draws > bound if smaller else draws < bound
        metrics = compute_metrics(scores, decisions, targets, self.task, with_areas=False)
        quantile = self.confidence if smaller else 1 - self.confidence
        return Evidence(
            value=metrics.values[metric],
            bound=float(np.quantile(draws, quantile)),
            p_value=float(is_missed.mean()),
            num_units=self.num_available(targets, groups),
        )


@dataclass(frozen=True)
class Guarantee:
    """Whether a claim was shown on held-out images.

    Attributes:
        claim: what was to be shown.
        evidence: about the threshold that was chosen; if none passed, about the strictest one.
        num_tested: number of thresholds that were tested.
        holds: whether a threshold passed.
    """

    claim: Claim
    evidence: Evidence
    num_tested: int
    holds: bool

    def __str__(self) -> str:
        claim, evidence = self.claim, self.evidence
        if not self.holds:
            verdict = "Not guaranteed"
        else:
            verdict = "Approximately guaranteed" if claim.method.is_approximate else "Guaranteed"
        side = "upper" if claim.target.smaller_is_better else "lower"
        text = (
            f"{verdict}: {claim}. On {evidence.num_units} held-out {claim.counted}, "
            f"{claim.target.metric} is {evidence.value:.4f}, {side} bound {evidence.bound:.4f} "
            f"({claim.method})."
        )
        needed = claim.num_needed()
        if needed is not None and evidence.num_units < needed:
            # `check` knew the number of images with a label, but not that of such answers.
            text += f" It takes at least {needed} of them."
        return text

    def statement(self) -> str:
        """The guarantee and its assumptions, as the spec has them."""
        return f"{self} {self.claim.assumptions}"

    def to_json(self) -> dict[str, Any]:
        """The guarantee and its numbers, for programs."""
        claim, evidence = self.claim, self.evidence
        return {
            "holds": self.holds,
            "target": str(claim.target),
            "confidence": claim.confidence,
            "method": str(claim.method),
            "is_approximate": claim.method.is_approximate,
            "counted": claim.counted,
            "num_counted": evidence.num_units,
            "num_needed": claim.num_needed(),
            "value": None if math.isnan(evidence.value) else evidence.value,
            "bound": evidence.bound if math.isfinite(evidence.bound) else None,
            "thresholds_tested": self.num_tested,
            "assumptions": claim.assumptions,
        }


def percent(share: float) -> str:
    """Write a share as people do: ``0.95`` -> ``95 %``."""
    return f"{round(100 * share, 6):g} %"
