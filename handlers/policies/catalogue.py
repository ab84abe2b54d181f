"""The catalogue of policies that one deployment offers to its clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import PolicyError
from ..base.suggestions import nearest
from ..base.tasks import Task
from .ballot import LABEL_TASKS
from .fitted import FittedModel
from .registry import EXPRESSION, definition, definitions


@dataclass(frozen=True)
class Catalogue:
    """The policies that one deployment offers to its clients.

    Attributes:
        task: the ensemble's task.
        member_names: names of the ensemble's members.
        named: policies to which the deployment gives names of its own: name -> policy text, e.g.
            ``{"high-sensitivity": "any"}``. Such a name hides a registered policy of that name.
        allowed: names of the policies that clients may choose; None allows all. The name
            ``"expression"`` allows all expressions, in which every registered policy may be used.
        default: text of the policy for requests that choose none; clients may always choose it.
        fitted: fitted models for the policies that need one: name -> model.
    """

    task: Task
    member_names: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] | None = None
    default: str = "mean"
    fitted: Mapping[str, FittedModel] = field(default_factory=dict)

    def is_allowed(self, name: str) -> bool:
        """Tell whether `allowed` lets clients choose the policy of this name."""
        return self.allowed is None or name in self.allowed

    def usable_policies(self) -> list[str]:
        """List the registered policies that this deployment can compute.

        A policy is left out if it does not fit the task, or if the deployment lacks the fitted
        model that the policy needs.
        """
        return [
            registered.name
            for registered in definitions()
            if self.task in registered.tasks
            and (
                registered.fitted is None
                or any(isinstance(model, registered.fitted) for model in self.fitted.values())
            )
        ]

    def choosable_names(self) -> list[str]:
        """List all names that a client may choose, the deployment's own names first."""
        names = [*self.named, *(name for name in self.usable_policies() if name not in self.named)]
        return [name for name in names if self.is_allowed(name) or name == self.default]

    def allows_expressions(self) -> bool:
        """Tell whether a client may write expressions."""
        return self.task in LABEL_TASKS and self.is_allowed(EXPRESSION)

    def resolve(self, name: str) -> str:
        """Follow one of the deployment's own names to the text of a policy.

        A named policy may refer to another named policy. A registered policy or a member may be
        offered under its own name (``any: any``), which ends the search.

        Raises:
            PolicyError: the names refer to each other in a circle.
        """
        visited = [name]
        while (text := self.named[visited[-1]].strip()) in self.named:
            if text == visited[-1] and (definition(text) is not None or text in self.member_names):
                break
            if text in visited:
                raise PolicyError(
                    f"the named policies {' -> '.join([*visited, text])} lead in a circle; let one "
                    "of them be a registered policy or an expression"
                )
            visited.append(text)
        return text

    def choices_hint(self) -> str:
        """Write the end of an error message: which policies a client may choose."""
        expressions = ", or an expression" if self.allows_expressions() else ""
        return f"choose one of {', '.join(self.choosable_names())}{expressions}"

    def unknown_policy_message(self, name: str) -> str:
        """Write the error message for a name that is no policy of this deployment."""
        suggestion = nearest(name, self.choosable_names())
        return f"unknown policy '{name}'; {self.choices_hint()}{suggestion}"

    def wrong_task_message(self, name: str) -> str:
        """Write the error message for a registered policy that does not fit the task."""
        return f"policy '{name}' does not fit task {self.task}; {self.choices_hint()}"

    def describe(self) -> dict[str, Any]:
        """Describe the offered policies as JSON, for the worker's describe answer."""
        available: list[dict[str, Any]] = []
        for name in self.choosable_names():
            if name in self.named:
                available.append({"name": name, "policy": self.named[name]})
            elif (registered := definition(name)) is not None:
                available.append(registered.as_json(self.task))
        return {
            "default": self.default,
            "available": available,
            "expressions": self.allows_expressions(),
        }
