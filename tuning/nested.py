"""What to expect of the choice itself: the whole of tuning, measured on samples that it never saw.

The best of many candidates looks better than it is, as it was chosen for looking good on these very
samples, out of fold or not. So tuning is run again without each fold in turn, cross-validation and
choice included, and what it chose is measured on that fold (nested cross-validation: Stone 1974;
Varma & Simon 2006).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from .fitting import Outputs
from .intervals import with_intervals
from .metrics import Metrics, compute_metrics
from .selection import Measured, apply, choose, measure, splits
from .targets import Target


@dataclass(frozen=True, eq=False)
class Expected:
    """What tuning gives on new samples.

    Attributes:
        metrics: of the answers of what was chosen without them.
        chosen: names of candidates -> in how many folds each was chosen.
    """

    metrics: Metrics
    chosen: dict[str, int]


def expected(
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    eligible: Callable[[Measured], bool] = lambda measured: True,
    on_step: Callable[[int], None] = lambda total: None,
) -> Expected | None:
    """Tune without each fold and measure on it; None where folds are too small to be cut again.

    Args:
        outputs: what the members say about the labelled samples.
        target: what the operating point is to reach.
        folds: of both cross-validations.
        seed: of the folds.
        calibrate: fit temperatures.
        eligible: what may be chosen.
        on_step: called with the number of steps, after each.
    """
    task = outputs.panel.task
    scores = torch.zeros(outputs.scores.shape[1:])
    decisions = torch.zeros_like(scores, dtype=torch.bool)
    names: Counter[str] = Counter()
    pairs: Sequence[tuple[Tensor, Tensor]] = splits(outputs, folds, seed)
    for training, test in pairs:
        part = outputs.rows(training)
        try:
            splits(part, folds, seed)
        except SpecError:
            return None
        found, learned = measure(
            part, target, folds=folds, seed=seed, calibrate=calibrate, report=False
        )
        best = choose([each for each in found if eligible(each)], target)
        outcome = apply(best, outputs.rows(test), learned)
        scores[test] = outcome.scores
        if outcome.decisions is not None:
            decisions[test] = outcome.decisions
        names[best.candidate.name] += 1
        on_step(len(pairs))
    kept = None if task is Task.REGRESSION else decisions
    plain = compute_metrics(scores, kept, outputs.targets, task)
    return Expected(
        with_intervals(plain, scores, kept, outputs.targets, task), dict(names.most_common())
    )
