"""Combination policies: pure functions from what the members say to one answer.

Every policy takes a `Ballot` with scores (M members, N samples, C score labels) and gives an
`Outcome` with combined scores (N, C) and decisions (N, C). `POLICIES` is the one registry.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from .errors import PolicyError
from .strict_yaml import nearest
from .tasks import Task

VOTING = frozenset({Task.CLASSIFICATION, Task.PRESENCE, Task.MULTILABEL})
ALL_TASKS = frozenset(Task)


@dataclass(frozen=True)
class Ballot:
    """What the members say about one request's samples.

    Attributes:
        task: the kind of answer.
        scores: (M, N, C) float32: probabilities; for regression values.
        member_names: M names.
        weights: (M,) float32 voting weights.
        member_thresholds: (M, C) float32: a member votes for a label from this score on.
        thresholds: (C,) float32: decision thresholds on combined scores.
        logits: (M, N, C) float32, or None where some member gives probabilities.
    """

    task: Task
    scores: Tensor
    member_names: tuple[str, ...]
    weights: Tensor
    member_thresholds: Tensor
    thresholds: Tensor
    logits: Tensor | None = None

    @cached_property
    def votes(self) -> Tensor:
        """(M, N, C) bool: classification votes for its best label, the lowest index on a tie."""
        if self.task is Task.CLASSIFICATION:
            return one_hot(self.scores)
        return self.scores >= self.member_thresholds.unsqueeze(1)


@dataclass(frozen=True)
class Outcome:
    """One answer for each sample.

    Attributes:
        scores: (N, C) float32.
        decisions: (N, C) bool, the labels chosen; None for regression.
        abstained: (N,) bool where the policy may abstain.
        spread: name -> (N, C) float32, how far the members lie apart; regression only.
    """

    scores: Tensor
    decisions: Tensor | None
    abstained: Tensor | None = None
    spread: Mapping[str, Tensor] = field(default_factory=dict)


def one_hot(scores: Tensor) -> Tensor:
    """Bool of the same shape, true at the largest score, the lowest index on a tie."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.argmax(-1, True), True)


PolicyFunction = Callable[..., Outcome]


@dataclass(frozen=True)
class Definition:
    """One entry of the registry."""

    name: str
    function: PolicyFunction
    tasks: frozenset[Task]
    summary: str
    parameters: type[Any]

    def as_json(self) -> dict[str, Any]:
        """For the describe answer."""
        properties = self.parameters.model_json_schema().get("properties", {})
        return {"name": self.name, "summary": self.summary, "parameters": properties}


POLICIES: dict[str, Definition] = {}


def policy(name: str, tasks: frozenset[Task]) -> Callable[[PolicyFunction], PolicyFunction]:
    """Register a policy; its keyword-only arguments are its parameters, checked by their types.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: PolicyFunction) -> PolicyFunction:
        if name in POLICIES:
            raise ValueError(f"there is a policy '{name}' already")
        fields: dict[str, Any] = {
            parameter.name: (
                parameter.annotation,
                ... if parameter.default is inspect.Parameter.empty else parameter.default,
            )
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        model = create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        POLICIES[name] = Definition(name, function, tasks, summary, model)
        return function

    return register


@dataclass(frozen=True)
class BoundPolicy:
    """A policy with its parameters, checked."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As a client writes it, e.g. ``at_least(k=2)``."""
        arguments = ", ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def combine(self, ballot: Ballot) -> Outcome:
        """Combine one request's scores."""
        return POLICIES[self.name].function(ballot, **self.parameters)


@dataclass(frozen=True)
class Catalogue:
    """The policies that one deployment offers.

    Attributes:
        named: the deployment's own names -> policy text.
        allowed: what clients may choose; None is everything.
        default: text of the policy of a request that names none; always allowed.
    """

    task: Task
    member_names: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] | None = None
    default: str = "mean"

    def names(self) -> list[str]:
        """Every name that a client may choose."""
        fitting = [name for name, known in POLICIES.items() if self.task in known.tasks]
        names = [*self.named, *(name for name in fitting if name not in self.named)]
        return [n for n in names if self.allowed is None or n in self.allowed or n == self.default]

    def describe(self) -> dict[str, Any]:
        """For the describe answer."""
        available = [
            {"name": name, "policy": self.named[name]}
            if name in self.named
            else POLICIES[name].as_json()
            for name in self.names()
        ]
        return {"default": self.default, "available": available}


def parse_policy(text: str, parameters: Mapping[str, Any], catalogue: Catalogue) -> BoundPolicy:
    """A policy from its name or call form, e.g. ``any``, ``at_least(k=2)``, or a deployment's name.

    Args:
        text: as the spec or a client writes it.
        parameters: further parameters, e.g. from a form field.
        catalogue: what is on offer.

    Raises:
        PolicyError: not known, not allowed, not for this task, or a wrong parameter.
    """
    text = text.strip()
    trusted = text == catalogue.default
    seen: set[str] = set()
    while text in catalogue.named and catalogue.named[text] != text and text not in seen:
        if not trusted:
            _check_allowed(text, catalogue)
        trusted = True
        seen.add(text)
        text = catalogue.named[text].strip()
    name, written = _call_form(text, catalogue)
    if not trusted:
        _check_allowed(name, catalogue)
    definition = POLICIES.get(name)
    if definition is None:
        raise _unknown(name, catalogue)
    if catalogue.task not in definition.tasks:
        raise PolicyError(
            f"policy '{name}' does not fit task {catalogue.task}; "
            f"choose one of {', '.join(catalogue.names())}"
        )
    try:
        values = definition.parameters.model_validate({**written, **parameters}).model_dump()
    except ValidationError as error:
        raise PolicyError("; ".join(_parameter_message(definition, e) for e in error.errors())) from None
    members = len(catalogue.member_names)
    if values.get("k", 0) > members:
        raise PolicyError(f"policy '{name}': k={values['k']}, but there are only {members} members")
    return BoundPolicy(name, values)


def _check_allowed(name: str, catalogue: Catalogue) -> None:
    if catalogue.allowed is not None and name not in catalogue.allowed:
        if name in POLICIES or name in catalogue.named:
            raise PolicyError(
                f"policy '{name}' is not allowed here; choose one of {', '.join(catalogue.names())}"
            )
        raise _unknown(name, catalogue)


def _unknown(name: str, catalogue: Catalogue) -> PolicyError:
    names = catalogue.names()
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    return PolicyError(
        f"unknown policy '{shown}'{nearest(name, names)}; choose one of {', '.join(names)}"
    )


def _call_form(text: str, catalogue: Catalogue) -> tuple[str, dict[str, Any]]:
    """``name`` or ``name(key=literal, ...)``, read by Python's own grammar, never evaluated."""
    if "(" not in text:
        return text, {}
    try:
        call = ast.parse(text[:500], mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
            raise ValueError("not of the form name(parameter=value)")
        return call.func.id, {
            str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords
        }
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise PolicyError(
            f"policy '{text[:60]}' is not of the form name(parameter=value), "
            f"e.g. at_least(k=2); choose one of {', '.join(catalogue.names())}"
        ) from None


def _parameter_message(definition: Definition, detail: Any) -> str:
    name = str(detail["loc"][0])
    known = list(definition.parameters.model_fields)
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    where = f"policy '{definition.name}': parameter {name}"
    if detail["type"] == "extra_forbidden":
        return f"{where} is not known{nearest(name, known)}; {takes}"
    if detail["type"] == "missing":
        return f"{where} is missing, e.g. {definition.name}({name}=2)"
    return f"{where}={detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _order_statistic(ballot: Ballot, k: int) -> Outcome:
    """At least k votes; the score is the k-th largest, so that it agrees with equal thresholds."""
    kth = len(ballot.scores) + 1 - k
    return Outcome(
        scores=ballot.scores.kthvalue(kth, dim=0).values,
        decisions=ballot.votes.sum(dim=0) >= k,
    )


@policy("any", VOTING)
def any_member(ballot: Ballot) -> Outcome:
    """OR: a label is chosen when any member votes for it. Highest sensitivity; score: maximum."""
    return _order_statistic(ballot, 1)


@policy("all", VOTING)
def all_members(ballot: Ballot) -> Outcome:
    """AND: a label is chosen when every member votes for it. Highest specificity; score: minimum."""
    return _order_statistic(ballot, len(ballot.scores))


@policy("at_least", VOTING)
def at_least(
    ballot: Ballot, *, k: Annotated[int, Field(ge=1, description="Votes needed")]
) -> Outcome:
    """A label is chosen when at least k members vote for it; score: the k-th largest."""
    return _order_statistic(ballot, k)


@policy("majority", VOTING)
def majority(ballot: Ballot) -> Outcome:
    """A label is chosen when more than half of the members vote for it; score: the k-th largest."""
    return _order_statistic(ballot, len(ballot.scores) // 2 + 1)


@policy("plurality", VOTING)
def plurality(ballot: Ballot) -> Outcome:
    """The label with most votes; a tie goes to the higher mean score. Score: share of the votes."""
    return _shares(ballot, torch.ones_like(ballot.weights))


@policy("weighted_vote", VOTING)
def weighted_vote(ballot: Ballot) -> Outcome:
    """As plurality, each vote counted with the member's weight. Score: share of the weight."""
    return _shares(ballot, ballot.weights)


def _shares(ballot: Ballot, weights: Tensor) -> Outcome:
    shares = torch.einsum("m,mnc->nc", weights, ballot.votes.float()) / weights.sum()
    if ballot.task is not Task.CLASSIFICATION:
        return Outcome(shares, shares > 0.5)
    best = shares >= shares.amax(dim=-1, keepdim=True) - 1e-6
    tie_break = ballot.scores.mean(dim=0).masked_fill(~best, -1)
    return Outcome(shares, one_hot(tie_break))


def _scored(ballot: Ballot, combined: Tensor) -> Outcome:
    """Decide on combined scores: the best label, or every label from its threshold on."""
    if ballot.task is Task.REGRESSION:
        spread = {"standard_deviation": ballot.scores.std(dim=0, correction=0)}
        return Outcome(combined, None, spread=spread)
    if ballot.task is Task.CLASSIFICATION:
        return Outcome(combined, one_hot(combined))
    return Outcome(combined, combined >= ballot.thresholds)


@policy("mean", ALL_TASKS)
def mean(ballot: Ballot) -> Outcome:
    """Soft voting: the mean of the members' scores."""
    return _scored(ballot, ballot.scores.mean(dim=0))


@policy("weighted_mean", ALL_TASKS)
def weighted_mean(ballot: Ballot) -> Outcome:
    """The mean of the members' scores, each with the member's weight."""
    total = torch.einsum("m,mnc->nc", ballot.weights, ballot.scores)
    return _scored(ballot, total / ballot.weights.sum())


@policy("max", ALL_TASKS)
def maximum(ballot: Ballot) -> Outcome:
    """The members' highest score."""
    return _scored(ballot, ballot.scores.amax(dim=0))


@policy("min", ALL_TASKS)
def minimum(ballot: Ballot) -> Outcome:
    """The members' lowest score."""
    return _scored(ballot, ballot.scores.amin(dim=0))


@policy("median", ALL_TASKS)
def median(ballot: Ballot) -> Outcome:
    """The median of the members' scores; for an even number the mean of the middle two."""
    return _scored(ballot, ballot.scores.quantile(0.5, dim=0))
