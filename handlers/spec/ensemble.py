"""The spec as a whole: the top-level keys of ensemble.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from ..base.tasks import Task
from .labels_file import labels_from_file
from .member import Member, Output
from .preprocessing import Preprocessing
from .provenance import Provenance
from .rollout import Rollout
from .settings import Failures, Limits, Policies, Runtime, Serving
from .value_types import UNKNOWN_KEYS_ARE_ERRORS, Name, Probability, Version

_DEFAULT_THRESHOLD = 0.5


def _or_file(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a list allow the name of a file in its place."""
    of_list = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [of_list, {"type": "string"}]


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class EnsembleSpec:
    """Several models that are served together, behind one endpoint."""

    name: Annotated[
        Name, Field(description="Name of the ensemble and of its endpoint, /predictions/NAME")
    ]
    version: Version
    task: Annotated[
        Task,
        Field(
            description="What the ensemble answers. classification: exactly one of the labels. "
            "presence: whether one thing is there. multilabel: any number of the labels. "
            "regression: numbers"
        ),
    ]
    labels: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="Names of the members' outputs, in their order, or a file that has them "
            "in the format of TorchServe's index_to_name.json. For presence: [absent, present]",
            json_schema_extra=_or_file,
        ),
        BeforeValidator(labels_from_file),
    ]
    members: Annotated[
        tuple[Member, ...], Field(min_length=1, description="The models of the ensemble")
    ]
    description: Annotated[
        str | None, Field(description="What the ensemble is for, shown to clients that ask")
    ] = None
    preprocessing: Annotated[
        Mapping[str, Preprocessing],
        Field(description="Preprocessing settings by name, which members refer to"),
    ] = field(default_factory=dict)
    threshold: Annotated[
        Probability | Mapping[str, Probability],
        Field(
            description="The answer is positive for a label if its combined score is at least "
            "this: one number for all labels, or one by label. For the tasks presence and "
            "multilabel"
        ),
    ] = _DEFAULT_THRESHOLD
    policies: Annotated[Policies, Field(description="How the members' scores are combined")] = (
        field(default_factory=Policies)
    )
    runtime: Annotated[Runtime, Field(description="How the members are computed")] = field(
        default_factory=Runtime
    )
    failures: Annotated[
        Failures, Field(description="What happens when a member fails or is late")
    ] = field(default_factory=Failures)
    limits: Annotated[Limits, Field(description="Bounds on one request")] = field(
        default_factory=Limits
    )
    serving: Annotated[Serving, Field(description="TorchServe's settings of the model")] = field(
        default_factory=Serving
    )
    rollout: Annotated[
        Rollout | None,
        Field(description="A candidate that is tried beside the current ensemble"),
    ] = None
    provenance: Annotated[Provenance, Field(description="Where the ensemble comes from")] = field(
        default_factory=Provenance
    )
    extra_files: Annotated[
        tuple[str, ...],
        Field(
            description="Further files that the archive contains, with their paths from the "
            "spec's folder, e.g. modules that an architecture's Python file imports"
        ),
    ] = ()

    @property
    def score_labels(self) -> tuple[str, ...]:
        """Labels of the score columns: the second label alone for presence, otherwise all."""
        return self.labels[1:] if self.task is Task.PRESENCE else self.labels

    @property
    def current_members(self) -> tuple[int, ...]:
        """Positions of the members that vote unless a request chooses others."""
        new = () if self.rollout is None else self.rollout.new_members
        return tuple(
            position for position, member in enumerate(self.members) if member.name not in new
        )

    @property
    def candidate_members(self) -> tuple[int, ...]:
        """Positions of the candidate's members; all members if there is no candidate."""
        chosen = None if self.rollout is None else self.rollout.members
        return tuple(
            position
            for position, member in enumerate(self.members)
            if chosen is None or member.name in chosen
        )

    def only(self, positions: Iterable[int]) -> EnsembleSpec:
        """Return the spec of an ensemble that has only the members at these positions."""
        return replace(self, members=tuple(self.members[position] for position in positions))

    def preprocessing_of(self, member: Member) -> Preprocessing:
        """Return a member's preprocessing settings, also if the member only names them.

        If the member names torchvision weights, the result names them too; `inputs.preprocessing`
        looks up their settings.
        """
        choice = member.preprocessing
        if isinstance(choice, Preprocessing):
            return choice
        if choice is None:
            return next(iter(self.preprocessing.values()))
        return self.preprocessing.get(choice) or Preprocessing(weights=choice)

    def output_of(self, member: Member) -> Output:
        """Return what a member's forward gives: its key `output`, or the task's default."""
        default = Output.VALUES if self.task is Task.REGRESSION else Output.LOGITS
        return member.output or default

    def thresholds(self, member: Member | None = None) -> tuple[float, ...]:
        """Return one threshold for each of `score_labels`.

        Args:
            member: the member whose votes the thresholds are for; None for the thresholds of the
                ensemble's combined scores.
        """
        of_member = member.threshold if member is not None else None
        return tuple(
            _threshold_of(
                label, of_member, _threshold_of(label, self.threshold, _DEFAULT_THRESHOLD)
            )
            for label in self.score_labels
        )

    def files(self) -> tuple[str, ...]:
        """Return the sorted paths, from the spec's folder, of all files that the spec names."""
        named = {member.weights for member in self.members}
        named |= {m.architecture_file for m in self.members if m.architecture_file is not None}
        named |= {m.postprocess_file for m in self.members if m.postprocess_file is not None}
        named |= set(self.policies.fitted.values())
        inline = [member.preprocessing for member in self.members]
        for each in (*self.preprocessing.values(), *inline):
            if isinstance(each, Preprocessing):
                named |= set(each.files.values())
        return tuple(
            sorted({PurePosixPath(file).as_posix() for file in named | set(self.extra_files)})
        )


def _threshold_of(
    label: str, thresholds: float | Mapping[str, float] | None, default: float
) -> float:
    """Return the threshold of one label from a key that has one for all, one by label, or none."""
    if thresholds is None:
        return default
    return thresholds.get(label, default) if isinstance(thresholds, Mapping) else thresholds
