"""The registry of policies, and the check that binds parameters to a policy.

The decorator `policy` adds a function to the registry as a `Definition`. `bind` checks a client's
parameters against a definition and returns a `BoundPolicy`, which is ready to combine ballots.
"""

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
from .ballot import LABEL_TASKS, THRESHOLD_TASKS, Ballot, Outcome
from .fitted import FittedModel
from .selective import MaxDisagreement, MinConfidence, Probability, abstain

PolicyFunction = Callable[..., Outcome]
"""Takes a `Ballot`, then the policy's parameters as keyword arguments."""

_Threshold = Annotated[
    Probability | None,
    Field(
        description="Replaces the deployment's thresholds for every label: the per-member "
        "thresholds for a policy that counts votes, the threshold of the combined score for others"
    ),
]

_COMMON_PARAMETERS: Mapping[str, tuple[Any, frozenset[Task]]] = {
    "threshold": (_Threshold, THRESHOLD_TASKS),
    "min_confidence": (MinConfidence, LABEL_TASKS),
    "max_disagreement": (MaxDisagreement, LABEL_TASKS),
}
"""Parameters that every policy takes: name -> (annotation, tasks for which it exists)."""


@dataclass(frozen=True)
class AtMostMembers:
    """Annotation of an integer parameter whose upper bound is the number of members."""


class ParameterError(ValueError):
    """A parameter is unknown, missing or has a value that its policy does not take.

    Attributes:
        parameter: name of the parameter to point at in the text; None if a parameter is missing,
            because a missing parameter stands nowhere in the text.
    """

    def __init__(self, message: str, parameter: str | None) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, eq=False)
class Definition:
    """A registered policy, before a client has given its parameters.

    Attributes:
        name: name of the policy, as clients write it.
        function: computes the `Outcome` from a `Ballot` and keyword parameters.
        tasks: tasks for which the policy can be used.
        summary: one line that describes the policy to people.
        own_parameters: parameters that only this policy takes: name -> (annotation, default), with
            ``...`` as the default of a required parameter.
        fitted: class of the fitted model that the policy needs; None if it needs none.
        counts_votes: true if the policy decides from the members' votes, false if it decides from
            the combined score.
    """

    name: str
    function: PolicyFunction
    tasks: frozenset[Task]
    summary: str
    own_parameters: Mapping[str, tuple[Any, Any]]
    fitted: type[FittedModel] | None
    counts_votes: bool

    def parameters(self, task: Task) -> type[BaseModel]:
        """Build the pydantic model that checks and coerces the parameters for a task."""
        return _parameter_model(self, task)

    def limited_by_members(self) -> tuple[str, ...]:
        """List the parameters whose upper bound is the number of members."""
        return tuple(
            name
            for name, (annotation, _) in self.own_parameters.items()
            if any(
                isinstance(each, AtMostMembers) for each in getattr(annotation, "__metadata__", ())
            )
        )

    def as_json(self, task: Task) -> dict[str, Any]:
        """Describe the policy as JSON: name, summary, tasks, and parameters as a JSON Schema."""
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
    """Register the decorated function as a policy.

    The function takes a `Ballot` and returns an `Outcome`. Its keyword-only arguments are the
    policy's parameters; their annotations check and coerce what clients give. An argument called
    `model` is special: its annotation is a `FittedModel` class, clients give the name of a fitted
    model of the deployment, and they may leave it out if there is only one of that class. The first
    line of the function's docstring becomes the policy's summary. Every policy also takes
    `threshold`, `min_confidence` and `max_disagreement`, which the function does not see.

    Args:
        name: name of the policy, as clients write it.
        tasks: tasks for which the policy can be used.
        counts_votes: whether the policy decides from the members' votes. The parameter `threshold`
            then replaces the per-member thresholds, too.

    Raises:
        ValueError: a policy of that name exists, or an argument has the name of a parameter that
            every policy takes.
    """

    def register(function: PolicyFunction) -> PolicyFunction:
        if name in _REGISTRY:
            raise ValueError(f"there is a policy '{name}' already: {_REGISTRY[name].function}")
        own_parameters: dict[str, tuple[Any, Any]] = {}
        fitted: type[FittedModel] | None = None
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.name in _COMMON_PARAMETERS:
                raise ValueError(f"policy '{name}': every policy has {parameter.name} already")
            if parameter.name == "model":
                fitted = parameter.annotation
                continue
            is_required = parameter.default is inspect.Parameter.empty
            default = ... if is_required else parameter.default
            own_parameters[parameter.name] = (parameter.annotation, default)
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _REGISTRY[name] = Definition(
            name, function, tasks, summary, own_parameters, fitted, counts_votes
        )
        return function

    return register


def definitions() -> tuple[Definition, ...]:
    """List all registered policies, in the order of their registration."""
    return tuple(_REGISTRY.values())


def definition(name: str) -> Definition | None:
    """Look up a registered policy by its name; None if no policy has that name."""
    return _REGISTRY.get(name)


@dataclass(frozen=True)
class BoundPolicy:
    """A policy with checked parameters, ready to combine ballots.

    Attributes:
        name: name of the registered policy; ``expression`` for an expression.
        parameters: values of the parameters, defaults included, JSON-compatible. The only parameter
            of an expression is its ``text``.
    """

    name: str
    parameters: Mapping[str, Any]
    _combine: Callable[[Ballot], Outcome] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The policy as a client writes it, e.g. ``at_least(k=2)``; `parse_policy` reads it."""
        if self.name == EXPRESSION:
            return str(self.parameters["text"])
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def combine(self, ballot: Ballot) -> Outcome:
        """Combine the members' scores into one answer for each sample.

        Raises:
            PolicyError: the ballot lacks members that the policy needs, or all of its members have
                weight 0 in a policy that uses weights.
        """
        return self._combine(ballot)


EXPRESSION = "expression"
"""Name of a `BoundPolicy` that is an expression. In a deployment's list of allowed policies, this
name stands for all expressions."""


def bind(
    registered: Definition,
    parameters: Mapping[str, Any],
    *,
    task: Task,
    member_names: Sequence[str],
    fitted: Mapping[str, FittedModel],
) -> BoundPolicy:
    """Check and coerce the parameters of a policy, and bind them to it.

    Texts are coerced: ``"2"`` from a form field becomes 2.

    Args:
        registered: the policy; the task must be one of its tasks.
        parameters: name -> value, as a client gives them.
        task: the deployment's task.
        member_names: members whose scores the policy will combine.
        fitted: the deployment's fitted models: name -> model.

    Raises:
        ParameterError: a parameter is unknown or missing, has a wrong type, is out of range, or
            exceeds the number of members.
        PolicyError: the fitted model was not fitted with these members.
    """
    given = dict(parameters)
    accepted = list(registered.parameters(task).model_fields)
    takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no parameters"
    for name, value in given.items():
        if name not in accepted:
            raise ParameterError(
                f"parameter {shown(name)} is not known; {takes}{nearest(name, accepted)}", name
            )
        # No policy has a boolean parameter, and pydantic would read True as 1.
        if isinstance(value, bool):
            raise ParameterError(f"parameter {name}: {value} is not a number", name)
    if registered.fitted is not None:
        given["model"] = _fitted_model_name(registered.fitted, given.get("model"), fitted)
    try:
        checked = registered.parameters(task).model_validate(given)
    except ValidationError as error:
        raise _parameter_error(error.errors()[0], takes) from None
    values = checked.model_dump(exclude_none=True)
    _check_against_members(registered, values, len(member_names))
    arguments = {name: getattr(checked, name) for name in registered.own_parameters}
    if registered.fitted is not None:
        arguments["model"] = fitted[values["model"]]
        arguments["model"].positions(member_names)
    threshold = values.get("threshold")
    limits = {name: values.get(name) for name in ("min_confidence", "max_disagreement")}

    def combine(ballot: Ballot) -> Outcome:
        num_members = len(ballot.member_names)
        try:
            _check_against_members(registered, values, num_members)
        except ParameterError as error:
            message = f"policy '{registered.name}': {error}, since only {num_members} gave scores"
            raise PolicyError(message) from None
        ballot = apply_threshold(registered, ballot, threshold)
        return abstain(registered.function(ballot, **arguments), ballot, **limits)

    return BoundPolicy(registered.name, values, combine)


def _check_against_members(
    registered: Definition, values: Mapping[str, Any], num_members: int
) -> None:
    """Check that no parameter exceeds the number of members where that is its upper bound.

    Raises:
        ParameterError: a parameter exceeds the number of members.
    """
    for name in registered.limited_by_members():
        if name in values and values[name] > num_members:
            raise ParameterError(
                f"parameter {name}={values[name]} exceeds the number of members, {num_members}",
                name,
            )


def apply_threshold(registered: Definition, ballot: Ballot, threshold: float | None) -> Ballot:
    """Replace the deployment's thresholds in a ballot by the client's parameter `threshold`.

    Args:
        registered: the policy. The per-member thresholds are replaced only if it counts votes.
        ballot: the members' scores, with the deployment's thresholds.
        threshold: the new threshold for every label; None leaves the ballot as it is.
    """
    if threshold is None:
        return ballot
    changed = replace(ballot, thresholds=torch.full_like(ballot.thresholds, threshold))
    if not registered.counts_votes:
        return changed
    member_thresholds = torch.full_like(ballot.member_thresholds, threshold)
    return replace(changed, member_thresholds=member_thresholds)


@cache
def _parameter_model(registered: Definition, task: Task) -> type[BaseModel]:
    """Build the pydantic model of a policy's own and common parameters, once for each task."""
    fields: dict[str, Any] = dict(registered.own_parameters)
    if registered.fitted is not None:
        description = (
            f"Name of the fitted {registered.fitted.KIND} model; may be left out if the deployment "
            "has only one"
        )
        fields["model"] = (Annotated[str | None, Field(description=description)], None)
    fields |= {
        name: (annotation, None)
        for name, (annotation, tasks) in _COMMON_PARAMETERS.items()
        if task in tasks
    }
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    return create_model(registered.name, __config__=config, **fields)


def _fitted_model_name(
    model_class: type[FittedModel], name: object, fitted: Mapping[str, FittedModel]
) -> str:
    """Check the name of a fitted model, or supply the name if only one model is possible.

    Args:
        model_class: class of the fitted model that the policy needs.
        name: the client's parameter `model`; None if it was left out.
        fitted: the deployment's fitted models: name -> model.

    Raises:
        ParameterError: no model of the class has the name, or the name was left out although the
            deployment has several models of the class, or none.
    """
    kind = model_class.KIND
    names = [key for key, model in fitted.items() if isinstance(model, model_class)]
    if not names:
        raise ParameterError(f"it needs a fitted {kind} model, and this deployment has none", None)
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise ParameterError(f"parameter model is missing: one of {', '.join(names)}", None)
    if name not in names:
        raise ParameterError(
            f"parameter model={shown(name)} is no fitted {kind} model; it is one of "
            f"{', '.join(names)}{nearest(str(name), names)}",
            "model",
        )
    return str(name)


def _parameter_error(detail: Any, takes: str) -> ParameterError:
    """Turn one of pydantic's error details into an error that names the parameter."""
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return ParameterError(f"parameter {name} is missing; {takes}", None)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return ParameterError(f"parameter {name}={shown(detail['input'])}: {message}", name)
