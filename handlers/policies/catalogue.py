"""The policies that one deployment offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import PolicyError
from ..base.suggestions import nearest
from ..base.tasks import Task
from .ballot import DECIDING
from .fitted import FittedModel
from .registry import EXPRESSION, definition, definitions


@dataclass(frozen=True)
class Catalogue:
    """The policies that one deployment offers.

    Attributes:
        task: what the ensemble answers.
        member_names: its members.
        named: the deployment's own names -> policy text, e.g. ``{"high-sensitivity": "any"}``. They
            come before registered policies of the same name.
        allowed: what clients may choose, by name; ``"expression"`` stands for every expression, and
            inside of one every registered policy may be used. None: everything.
        default: text of the policy of a request that names none; always allowed.
        fitted: name -> fitted model, for the policies that need one.
    """

    task: Task
    member_names: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] | None = None
    default: str = "mean"
    fitted: Mapping[str, FittedModel] = field(default_factory=dict)

    def permits(self, name: str) -> bool:
        """Whether a client may choose the name."""
        return self.allowed is None or name in self.allowed

    def fitting(self) -> list[str]:
        """Registered policies that fit the task and have the fitted model that they need."""
        return [
            known.name
            for known in definitions()
            if self.task in known.tasks
            and (
                known.fitted is None
                or any(isinstance(model, known.fitted) for model in self.fitted.values())
            )
        ]

    def names(self) -> list[str]:
        """Every name that a client may choose, the deployment's own first."""
        names = [*self.named, *(name for name in self.fitting() if name not in self.named)]
        return [name for name in names if self.permits(name) or name == self.default]

    def takes_expressions(self) -> bool:
        """Whether a client may write expressions."""
        return self.task in DECIDING and self.permits(EXPRESSION)

    def resolve(self, name: str) -> str:
        """The text behind one of the deployment's own names.

        A registered policy or a member may be offered under its own name (``any: any``).

        Raises:
            PolicyError: the names lead back to themselves.
        """
        seen = [name]
        while (text := self.named[seen[-1]].strip()) in self.named:
            if text == seen[-1] and (definition(text) is not None or text in self.member_names):
                break
            if text in seen:
                raise PolicyError(
                    f"the named policies {' -> '.join([*seen, text])} lead in a circle; let one of "
                    "them be a registered policy or an expression"
                )
            seen.append(text)
        return text

    def choices(self) -> str:
        """For the end of an error message: what a client may choose."""
        expressions = ", or an expression" if self.takes_expressions() else ""
        return f"choose one of {', '.join(self.names())}{expressions}"

    def unknown(self, name: str) -> str:
        """Message for a name that is no policy."""
        return f"unknown policy '{name}'; {self.choices()}{nearest(name, self.names())}"

    def misfit(self, name: str) -> str:
        """Message for a policy that does not fit the task."""
        return f"policy '{name}' does not fit task {self.task}; {self.choices()}"

    def describe(self) -> dict[str, Any]:
        """For the describe answer: JSON-compatible."""
        available: list[dict[str, Any]] = []
        for name in self.names():
            if name in self.named:
                available.append({"name": name, "policy": self.named[name]})
            elif (known := definition(name)) is not None:
                available.append(known.as_json(self.task))
        return {
            "default": self.default,
            "available": available,
            "expressions": self.takes_expressions(),
        }
