"""The one registry of policies, and a policy with its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..base.errors import PolicyError
from ..base.quoting import shown
from ..base.suggestions import nearest
from ..base.tasks import Task
from .ballot import DECIDING, THRESHOLDED, Ballot, Outcome
from .fitted import FittedModel
from .selective import MaxDisagreement, MinConfidence, Probability, abstain

PolicyFunction = Callable[..., Outcome]

_THRESHOLD = Annotated[
    Probability | None,
    Field(
        description="Replaces the deployment's thresholds for every label: of the members' votes "
        "for a policy that counts votes, of the combined score for the others"
    ),
]
_OPTIONS: Mapping[str, tuple[Any, frozenset[Task]]] = {
    "threshold": (_THRESHOLD, THRESHOLDED),
    "min_confidence": (MinConfidence, DECIDING),
    "max_disagreement": (MaxDisagreement, DECIDING),
}


@dataclass(frozen=True)
class AtMostMembers:
    """Marks a parameter that cannot exceed the number of members."""


class InvalidParameter(ValueError):
    """A parameter does not fit its policy.

    Attributes:
        parameter: its name; None where one is missing.
    """

    def __init__(self, message: str, parameter: str | None) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, eq=False)
class Definition:
    """One entry of the registry.

    Attributes:
        name: as clients write it.
        function: from a `Ballot` and keyword parameters to an `Outcome`.
        tasks: what it can answer.
        summary: one line for people.
        own: the function's parameters: name -> (annotation, default).
        fitted: the kind of fitted model that it needs, if any.
        counts_votes: whether it decides from the members' votes.
    """

    name: str
    function: PolicyFunction
    tasks: frozenset[Task]
    summary: str
    own: Mapping[str, tuple[Any, Any]]
    fitted: type[FittedModel] | None
    counts_votes: bool

    def parameters(self, task: Task) -> type[BaseModel]:
        """The model that checks and coerces the parameters, with the options of the task."""
        return _parameters(self, task)

    def limited_by_members(self) -> tuple[str, ...]:
        """Parameters that cannot exceed the number of members."""
        return tuple(
            name
            for name, (annotation, _) in self.own.items()
            if any(isinstance(m, AtMostMembers) for m in getattr(annotation, "__metadata__", ()))
        )

    def as_json(self, task: Task) -> dict[str, Any]:
        """Name, summary, tasks, and the parameters as JSON Schema properties."""
        schema = self.parameters(task).model_json_schema()
        return {
            "name": self.name,
            "summary": self.summary,
            "tasks": sorted(str(task) for task in self.tasks),
            "parameters": schema.get("properties", {}),
            "required": schema.get("required", []),
        }


_REGISTRY: dict[str, Definition] = {}


def policy(
    name: str, *, tasks: frozenset[Task], counts_votes: bool = False
) -> Callable[[PolicyFunction], PolicyFunction]:
    """Register a policy.

    The function takes a `Ballot` and gives an `Outcome`. Its keyword-only arguments are its
    parameters, checked by their annotations; an argument `model` is a `FittedModel`, which clients
    write by its name and may leave out where there is only one. The first line of its docstring is
    the summary. The options `threshold`, `min_confidence` and `max_disagreement` come by
    themselves.

    Raises:
        ValueError: the name is taken, or a parameter has the name of an option.
    """

    def register(function: PolicyFunction) -> PolicyFunction:
        if name in _REGISTRY:
            raise ValueError(f"there is a policy '{name}' already: {_REGISTRY[name].function}")
        own: dict[str, tuple[Any, Any]] = {}
        fitted: type[FittedModel] | None = None
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.name in _OPTIONS:
                raise ValueError(f"policy '{name}': every policy has {parameter.name} already")
            if parameter.name == "model":
                fitted = parameter.annotation
                continue
            required = parameter.default is inspect.Parameter.empty
            own[parameter.name] = (parameter.annotation, ... if required else parameter.default)
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _REGISTRY[name] = Definition(name, function, tasks, summary, own, fitted, counts_votes)
        return function

    return register


def definitions() -> tuple[Definition, ...]:
    """Every registered policy, in the order of registration."""
    return tuple(_REGISTRY.values())


def definition(name: str) -> Definition | None:
    """The registered policy of that name, if there is one."""
    return _REGISTRY.get(name)


@dataclass(frozen=True)
class BoundPolicy:
    """A policy with its parameters, checked: ready to combine.

    Attributes:
        name: a registered policy, or ``expression``.
        parameters: with defaults filled in, JSON-compatible; an expression has its ``text``.
    """

    name: str
    parameters: Mapping[str, Any]
    _combine: Callable[[Ballot], Outcome] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """As a client writes it, e.g. ``at_least(k=2)``; `parse_policy` reads it back."""
        if self.name == EXPRESSION:
            return str(self.parameters["text"])
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def combine(self, ballot: Ballot) -> Outcome:
        """Combine one request's scores.

        Raises:
            PolicyError: the ballot lacks members that the policy needs, or weighs nobody.
        """
        return self._combine(ballot)


EXPRESSION = "expression"
"""Name of the policies that are expressions, also where a deployment allows them."""


def bind(
    chosen: Definition,
    parameters: Mapping[str, Any],
    *,
    task: Task,
    member_names: Sequence[str],
    fitted: Mapping[str, FittedModel],
) -> BoundPolicy:
    """A policy with its parameters checked and coerced (``"2"`` from a form field becomes 2).

    Args:
        chosen: the policy; it must fit the task.
        parameters: as a client gives them.
        task: of the deployment.
        member_names: the members that the policy will see.
        fitted: the deployment's fitted models, by name.

    Raises:
        InvalidParameter: unknown, missing, not of its type or range, or more than the members.
        PolicyError: the fitted model was not fitted with these members.
    """
    given = dict(parameters)
    known = list(chosen.parameters(task).model_fields)
    takes = f"it takes {', '.join(known)}" if known else "it takes no parameters"
    for name, value in given.items():
        if name not in known:
            raise InvalidParameter(
                f"parameter {shown(name)} is not known; {takes}{nearest(name, known)}", name
            )
        # No parameter is a yes or no, and pydantic would read True as 1.
        if isinstance(value, bool):
            raise InvalidParameter(f"parameter {name}: {value} is not a number", name)
    if chosen.fitted is not None:
        given["model"] = _choose_fitted(chosen, given.get("model"), fitted)
    try:
        checked = chosen.parameters(task).model_validate(given)
    except ValidationError as error:
        raise _invalid(error.errors()[0], takes) from None
    values = checked.model_dump(exclude_none=True)
    _check_limits(chosen, values, len(member_names))
    own = {name: getattr(checked, name) for name in chosen.own}
    if chosen.fitted is not None:
        own["model"] = fitted[values["model"]]
        own["model"].positions(member_names)
    threshold = values.get("threshold")
    selective = {key: values.get(key) for key in ("min_confidence", "max_disagreement")}

    def combine(ballot: Ballot) -> Outcome:
        members = len(ballot.member_names)
        try:
            _check_limits(chosen, values, members)
        except InvalidParameter as error:
            message = f"policy '{chosen.name}': {error}, since only {members} gave scores"
            raise PolicyError(message) from None
        seen = apply_threshold(chosen, ballot, threshold)
        return abstain(chosen.function(seen, **own), seen, **selective)

    return BoundPolicy(chosen.name, values, combine)


def _check_limits(chosen: Definition, values: Mapping[str, Any], members: int) -> None:
    """Check that no parameter asks for more members than there are.

    Raises:
        InvalidParameter: one does.
    """
    for name in chosen.limited_by_members():
        if name in values and values[name] > members:
            raise InvalidParameter(
                f"parameter {name}={values[name]} exceeds the number of members, {members}", name
            )


def apply_threshold(chosen: Definition, ballot: Ballot, threshold: float | None) -> Ballot:
    """The ballot with one threshold in place of the deployment's, if one is given."""
    if threshold is None:
        return ballot
    changed = replace(ballot, thresholds=torch.full_like(ballot.thresholds, threshold))
    if not chosen.counts_votes:
        return changed
    own = torch.full_like(ballot.member_thresholds, threshold)
    return replace(changed, member_thresholds=own)


@cache
def _parameters(chosen: Definition, task: Task) -> type[BaseModel]:
    fields: dict[str, Any] = dict(chosen.own)
    if chosen.fitted is not None:
        description = (
            f"Name of the fitted model ({chosen.fitted.KIND}); may be left out if only one"
        )
        fields["model"] = (Annotated[str | None, Field(description=description)], None)
    fields |= {name: (kind, None) for name, (kind, tasks) in _OPTIONS.items() if task in tasks}
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    return create_model(chosen.name, __config__=config, **fields)


def _choose_fitted(chosen: Definition, name: object, fitted: Mapping[str, FittedModel]) -> str:
    """The name of the fitted model to use: the one asked for, or the only one that fits."""
    assert chosen.fitted is not None
    fitting = [key for key, model in fitted.items() if isinstance(model, chosen.fitted)]
    if not fitting:
        raise InvalidParameter(
            f"it needs a fitted {chosen.fitted.KIND} model, and this deployment has none", None
        )
    if name is None and len(fitting) == 1:
        return fitting[0]
    if name is None:
        raise InvalidParameter(f"parameter model is missing: one of {', '.join(fitting)}", None)
    if name not in fitting:
        raise InvalidParameter(
            f"parameter model={shown(name)} is no fitted {chosen.fitted.KIND} model; it is one of "
            f"{', '.join(fitting)}{nearest(str(name), fitting)}",
            "model",
        )
    return str(name)


def _invalid(detail: Any, takes: str) -> InvalidParameter:
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return InvalidParameter(f"parameter {name} is missing; {takes}", None)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return InvalidParameter(f"parameter {name}={shown(detail['input'])}: {message}", name)
