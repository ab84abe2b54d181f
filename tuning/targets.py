"""What a user needs: ``recall>=0.99``, ``false_positive_rate<=0.01``, ``maximise f1``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..handlers.base.errors import SpecError
from ..handlers.base.suggestions import nearest
from ..handlers.base.tasks import Task

_FORM = re.compile(r"\s*(?:(maximise|minimise)\s+(\w+)|(\w+)\s*(>=|<=)\s*(\d+\.?\d*|\.\d+))\s*")
_ALIASES = {"sensitivity": "recall", "fpr": "false_positive_rate"}
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
    """A figure that must be reached, and the one that is then made as good as possible.

    Attributes:
        metric: the figure.
        bound: that it must reach; None: as good as possible.
        complement: the figure that the bound is traded against.
    """

    metric: str
    bound: float | None
    complement: str

    def __str__(self) -> str:
        smaller = self.metric in SMALLER_IS_BETTER
        if self.bound is None:
            return f"{'minimise' if smaller else 'maximise'} {self.metric}"
        return f"{self.metric}{'<=' if smaller else '>='}{self.bound:g}"

    def meets(self, values: dict[str, float]) -> bool:
        """Whether metrics reach the bound."""
        return self.bound is None or self.shortfall(values) <= 0

    def shortfall(self, values: dict[str, float]) -> float:
        """How far the figure is from the bound; at most 0 where it is reached."""
        value = values[self.metric]
        if math.isnan(value):
            return math.inf
        if self.bound is None:
            return 0.0
        smaller = self.metric in SMALLER_IS_BETTER
        return value - self.bound if smaller else self.bound - value

    def merit(self, values: dict[str, float]) -> tuple[bool, float, float]:
        """Larger is better: reached at all, then the figure that counts, then the other."""
        if self.bound is None:
            return (True, _good(values, self.metric), _good(values, self.complement))
        if not self.meets(values):
            return (False, -self.shortfall(values), _good(values, self.complement))
        return (True, _good(values, self.complement), _good(values, self.metric))


def _good(values: dict[str, float], metric: str) -> float:
    value = values[metric]
    if math.isnan(value):
        return -math.inf
    return -value if metric in SMALLER_IS_BETTER else value


def parse_target(text: str, task: Task) -> Target:
    """Read a target.

    Raises:
        SpecError: another form, or a figure that the task does not have.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise SpecError(
            f"target '{text}': write FIGURE>=VALUE, FIGURE<=VALUE, or 'maximise FIGURE'"
        )
    verb, alone, named, sign, bound = found.groups()
    metric = _ALIASES.get(alone or named, alone or named)
    choices = {Task.CLASSIFICATION: _CLASSIFICATION, Task.REGRESSION: _REGRESSION}.get(
        task, _DETECTION
    )
    if metric not in choices:
        raise SpecError(
            f"target '{text}': task {task} has no figure '{metric}'; it has {', '.join(choices)}"
            f"{nearest(metric, tuple(choices))}"
        )
    smaller = metric in SMALLER_IS_BETTER
    if (sign == "<=" or verb == "minimise") != smaller:
        raise SpecError(
            f"target '{text}': {metric} is better when it is "
            f"{'smaller: write <= or minimise' if smaller else 'larger: write >= or maximise'}"
        )
    return Target(metric, float(bound) if bound is not None else None, choices[metric])
