"""Every policy at its best operating point, measured out of fold; and the choice among them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from ...handlers.errors import MemberError, PolicyError
from ...handlers.policies import BoundPolicy, Catalogue, Outcome, one_hot, parse_policy
from ...handlers.tasks import Task
from .figures import Figures, figures
from .fitting import Learned, Outputs, learn
from .targets import Target

_THRESHOLDED = (Task.PRESENCE, Task.MULTILABEL)
_STEPS = 120
_PLAIN = (
    *("any", "all", "majority", "mean", "weighted_mean", "median", "max", "min"),
    *("geometric_mean", "logit_mean", "stacking", "dawid_skene", "per_class_weights"),
)
_OF_CLASSES = ("plurality", "borda", "weighted_vote")
_OF_VALUES = ("mean", "weighted_mean", "median", "stacking")


@dataclass(frozen=True)
class Candidate:
    """A policy whose operating point is to be found.

    Attributes:
        name: for tables.
        policy: name of a registered policy; empty for a member alone.
        parameters: fixed ones.
        member: the member, for a single one.
        dial: the parameter that is tuned; None: nothing is.
    """

    name: str
    policy: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    member: str | None = None
    dial: str | None = None

    def text(self, value: float | None) -> str:
        """As a spec writes it, with the dial at a value."""
        if self.member is not None:
            text = f'member("{self.member}")'
            return text if value is None else f"{text} >= {value:g}"
        parameters = dict(self.parameters)
        if self.dial is not None and value is not None:
            parameters[self.dial] = value
        written = ", ".join(f"{name}={number:g}" for name, number in parameters.items())
        return f"{self.policy}({written})" if written else self.policy


@dataclass(frozen=True, eq=False)
class Measured:
    """A candidate with its figures.

    Attributes:
        text: the policy, with the dial as found on all samples.
        out_of_fold: figures of samples that the dial and the fits did not see.
        in_sample: figures of `text` on all samples, as an endpoint would give them.
        scores: (N, C) out of fold, for curves.
        decisions: (N, C) out of fold; None for regression.
    """

    candidate: Candidate
    text: str
    out_of_fold: Figures
    in_sample: Figures
    scores: Tensor
    decisions: Tensor | None


def candidates(task: Task, members: Sequence[str]) -> list[Candidate]:
    """Members alone, then policies."""
    dial = "threshold" if task in _THRESHOLDED else None
    if task is Task.CLASSIFICATION:
        dial = "min_confidence"
    alone = [
        Candidate(f"member {name}", member=name, dial=dial if task in _THRESHOLDED else None)
        for name in members
    ]
    if task is Task.REGRESSION:
        return [*alone, *(Candidate(name, name) for name in _OF_VALUES)]
    names = [*_PLAIN, *(_OF_CLASSES if task is Task.CLASSIFICATION else ())]
    if task is Task.MULTILABEL:
        names.remove("dawid_skene")
    found = [Candidate(name, name, dial=dial) for name in names]
    for votes in range(2, len(members)):
        name = f"at_least(k={votes})"
        found.append(Candidate(name, "at_least", {"k": votes}, dial=dial))
    return [*alone, *found]


def measure(
    outputs: Outputs,
    target: Target,
    *,
    folds: int = 5,
    seed: int = 0,
    calibrate: bool = True,
    on_step: Callable[[int], None] = lambda total: None,
) -> tuple[list[Measured], Learned]:
    """Every candidate: dial and fits by cross-validation, then on all samples.

    Args:
        outputs: what the members say about the labelled samples.
        target: what the dial is to reach.
        folds: of the cross-validation.
        seed: of the folds.
        calibrate: fit temperatures.
        on_step: called with the number of steps, after each.

    Returns:
        The candidates that the samples allow, and what was learned on all samples.
    """
    splits = list(_splits(outputs, folds, seed))
    learned = [learn(outputs.rows(training), calibrate=calibrate) for training, _ in splits]
    whole = learn(outputs, calibrate=calibrate)
    found = []
    everything = candidates(outputs.panel.task, outputs.panel.member_names)
    for candidate in everything:
        # E.g. logit_mean does not work where a member gives probabilities.
        with contextlib.suppress(PolicyError, MemberError):
            found.append(_measure_one(candidate, outputs, target, splits, learned, whole))
        on_step(len(everything))
    return found, whole


def choose(found: Sequence[Measured], target: Target) -> Measured:
    """The best out of fold; among equals a policy before a single member, then the first.

    One that gives all samples the same answer is never chosen before one that does not.
    """
    return max(
        [each for each in found if not _says_nothing(each.decisions)] or found,
        key=lambda each: (
            target.merit(dict(each.out_of_fold.values)),
            each.candidate.member is None,
        ),
    )


def bind(text: str, outputs: Outputs, learned: Learned) -> BoundPolicy:
    """A policy over these members, with the fitted models."""
    catalogue = Catalogue(
        task=outputs.panel.task,
        member_names=outputs.panel.member_names,
        fitted=learned.models,
    )
    return parse_policy(text, {}, catalogue)


def _outcome(candidate: Candidate, value: float | None, applied: Outputs, fit: Learned) -> Outcome:
    """A candidate on samples that are calibrated already."""
    if candidate.member is None:
        return bind(candidate.text(value), applied, fit).combine(applied.ballot())
    scores = applied.scores[applied.panel.member_names.index(candidate.member)]
    if applied.panel.task is Task.REGRESSION:
        return Outcome(scores=scores, decisions=None)
    if applied.panel.task is Task.CLASSIFICATION:
        return Outcome(scores=scores, decisions=one_hot(scores))
    return Outcome(scores=scores, decisions=scores >= (0.5 if value is None else value))


def _measure_one(
    candidate: Candidate,
    outputs: Outputs,
    target: Target,
    splits: Sequence[tuple[Tensor, Tensor]],
    learned: Sequence[Learned],
    whole: Learned,
) -> Measured:
    task = outputs.panel.task
    scores = torch.zeros(outputs.scores.shape[1:])
    decisions = torch.zeros_like(scores, dtype=torch.bool)
    for (training, test), fit in zip(splits, learned, strict=True):
        value = _best_dial(candidate, outputs.rows(training), target, fit)
        outcome = _outcome(candidate, value, fit.apply(outputs.rows(test)), fit)
        scores[test] = outcome.scores
        if outcome.decisions is not None:
            decisions[test] = outcome.decisions
    kept = None if task is Task.REGRESSION else decisions
    value = _best_dial(candidate, outputs, target, whole)
    final = _outcome(candidate, value, whole.apply(outputs), whole)
    return Measured(
        candidate=candidate,
        text=candidate.text(value),
        out_of_fold=figures(scores, kept, outputs.targets, task),
        in_sample=figures(final.scores, final.decisions, outputs.targets, task),
        scores=scores,
        decisions=kept,
    )


def _best_dial(
    candidate: Candidate, outputs: Outputs, target: Target, learned: Learned
) -> float | None:
    """The dial's value that serves the target best on these samples; None: as it is."""
    if candidate.dial is None:
        return None
    task = outputs.panel.task
    applied = learned.apply(outputs)
    scores = _outcome(candidate, None, applied, learned).scores
    best: tuple[Any, float | None] | None = None
    for value in _grid(scores, outputs.targets, task):
        outcome = _outcome(candidate, value, applied, learned)
        if _says_nothing(outcome.decisions):
            continue
        seen = figures(outcome.scores, outcome.decisions, outputs.targets, task, curves=False)
        merit = target.merit(dict(seen.values))
        if best is None or merit > best[0]:
            best = (merit, value)
    return best[1] if best is not None else None


def _says_nothing(decisions: Tensor | None) -> bool:
    """Whether all samples get the same answer, by which any bound on one figure is reached."""
    return decisions is not None and bool((decisions == decisions[:1]).all())


def _grid(scores: Tensor, targets: Tensor, task: Task) -> Iterator[float]:
    """Values between the scores, fine among the positives and among the negatives."""
    if task is Task.CLASSIFICATION:
        groups = [scores.amax(dim=1)]
        yield 0.0
    else:
        groups = [scores[targets], scores[~targets]]
        yield 0.5
    steps = torch.linspace(0, 1, _STEPS // len(groups) + 1, dtype=torch.float64)
    values: set[float] = set()
    for group in groups:
        if len(group):
            ordered = torch.unique(group.double())
            between = torch.cat([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])
            values |= set(between.quantile(steps).tolist())
    # Rounded as they are written into the spec, down, so that a score at the value still counts.
    yield from sorted({max(0.0, float(f"{value - 5e-7:.6f}")) for value in values})


def _splits(outputs: Outputs, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    samples = len(outputs.targets)
    if outputs.panel.task in (Task.CLASSIFICATION, Task.PRESENCE):
        strata = outputs.targets.float() @ torch.arange(1.0, outputs.targets.shape[1] + 1)
        splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=seed)
        pairs = splitter.split(torch.zeros(samples), strata.numpy())
    else:
        pairs = KFold(folds, shuffle=True, random_state=seed).split(torch.zeros(samples))
    for training, test in pairs:
        yield torch.from_numpy(training), torch.from_numpy(test)
