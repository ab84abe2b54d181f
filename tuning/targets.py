"""Targets of tuning: ``recall>=0.99``, ``false_positive_rate<=0.01``, ``maximise f1``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..handlers.base.errors import SpecError
from ..handlers.base.suggestions import nearest
from ..handlers.base.tasks import Task

_PATTERN = re.compile(r"\s*(?:(maximise|minimise)\s+(\w+)|(\w+)\s*(>=|<=)\s*(\d+\.?\d*|\.\d+))\s*")
_ALIASES = {"sensitivity": "recall", "fpr": "false_positive_rate"}

# Each metric that a target may name, with the metric that it is traded against.
_DETECTION = {
    "recall": "precision",
    "precision": "recall",
    "specificity": "recall",
    "false_positive_rate": "recall",
    "accuracy": "f1",
    "f1": "accuracy",
}
_CLASSIFICATION = {"accuracy": "coverage", "coverage": "accuracy", "f1": "accuracy"}
_CLASSIFICATION |= {"recall": "precision", "precision": "recall"}
_REGRESSION = {"rmse": "mae", "mae": "rmse", "r2": "rmse"}
SMALLER_IS_BETTER = frozenset({"rmse", "mae", "false_positive_rate"})


@dataclass(frozen=True)
class Target:
    """A metric that must reach a bound, and a second metric that is then made as good as possible.

    Attributes:
        metric: name of the metric.
        bound: value that the metric must reach; None: make the metric as good as possible.
        complement: name of the metric that the first one is traded against.
    """

    metric: str
    bound: float | None
    complement: str

    def __str__(self) -> str:
        if self.bound is None:
            return f"{'minimise' if self.smaller_is_better else 'maximise'} {self.metric}"
        return f"{self.metric}{'<=' if self.smaller_is_better else '>='}{self.bound:g}"

    @property
    def smaller_is_better(self) -> bool:
        """Whether the metric is an error, such as ``rmse``, which must not exceed its bound."""
        return self.metric in SMALLER_IS_BETTER

    def meets(self, values: dict[str, float]) -> bool:
        """Whether the metric reaches its bound; true if the target has no bound."""
        return self.bound is None or self.shortfall(values) <= 0

    def shortfall(self, values: dict[str, float]) -> float:
        """The distance of the metric from its bound; at most 0 if the bound is reached."""
        value = values[self.metric]
        if math.isnan(value):
            return math.inf
        if self.bound is None:
            return 0.0
        return value - self.bound if self.smaller_is_better else self.bound - value

    def merit(self, values: dict[str, float]) -> tuple[bool, float, float]:
        """A key by which results are compared; the larger, the better.

        A result that reaches the bound is better than one that does not. Among those that reach it
        the complement decides, among the others the distance from the bound.
        """
        if self.bound is None:
            return (True, _goodness(values, self.metric), _goodness(values, self.complement))
        if not self.meets(values):
            return (False, -self.shortfall(values), _goodness(values, self.complement))
        return (True, _goodness(values, self.complement), _goodness(values, self.metric))


def _goodness(values: dict[str, float], metric: str) -> float:
    """The metric, with its sign changed if smaller is better; minus infinity for NaN."""
    value = values[metric]
    if math.isnan(value):
        return -math.inf
    return -value if metric in SMALLER_IS_BETTER else value


def parse_target(text: str, task: Task) -> Target:
    """Read a target such as ``recall>=0.99`` or ``maximise f1``.

    Raises:
        SpecError: the text is no target, or it names a metric that the task does not have.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise SpecError(
            f"target '{text}': write METRIC>=VALUE, METRIC<=VALUE, or 'maximise METRIC'"
        )
    verb, optimised, bounded, sign, bound = match.groups()
    metric = _ALIASES.get(optimised or bounded, optimised or bounded)
    complements = {Task.CLASSIFICATION: _CLASSIFICATION, Task.REGRESSION: _REGRESSION}.get(
        task, _DETECTION
    )
    if metric not in complements:
        raise SpecError(
            f"target '{text}': task {task} has no metric '{metric}'; it has "
            f"{', '.join(complements)}{nearest(metric, tuple(complements))}"
        )
    smaller = metric in SMALLER_IS_BETTER
    if (sign == "<=" or verb == "minimise") != smaller:
        raise SpecError(
            f"target '{text}': {metric} is better when it is "
            f"{'smaller: write <= or minimise' if smaller else 'larger: write >= or maximise'}"
        )
    return Target(metric, float(bound) if bound is not None else None, complements[metric])
