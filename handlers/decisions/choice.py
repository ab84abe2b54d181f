"""What clients choose: policy, members, weights and thresholds, checked before any member runs."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ..base.errors import PolicyError
from ..base.quoting import shown, shown_names
from ..base.suggestions import nearest
from ..base.tasks import Task
from ..policies import (
    BoundPolicy,
    Catalogue,
    Panel,
    can_stop_early,
    parse_policy,
    votes_for_majority,
)
from ..requests.options import AnswerField, RequestOptions, ResponseFormat, Smoothing
from ..spec import EnsembleSpec, OnFailure

_MAX_CHOICES = 256
"""Checked choices that are kept, so that requests with equal options share one."""

_MAX_KEY_CHARACTERS = 2048
"""Options that are written longer are checked anew for each request."""


def panel_of(spec: EnsembleSpec) -> Panel:
    """All members of an ensemble with the weights and thresholds of the spec."""
    return Panel(
        task=spec.task,
        member_names=tuple(member.name for member in spec.members),
        weights=torch.tensor([member.voting_weight for member in spec.members]),
        member_thresholds=torch.tensor([spec.thresholds(m) for m in spec.members]),
        thresholds=torch.tensor(spec.thresholds()),
    )


@dataclass(frozen=True)
class Choice:
    """What one request chose, or several requests with equal options.

    Attributes:
        spec: the ensemble.
        catalogue: the policies that the deployment offers.
        options: the options of the requests, without those that belong to a single one (its
            stream and the order of its frames).
        panel: all members, with the weights and thresholds that hold for these requests.
        members: positions of the members that are to answer.
    """

    spec: EnsembleSpec
    catalogue: Catalogue
    options: RequestOptions
    panel: Panel
    members: tuple[int, ...]

    @property
    def deadline_ms(self) -> float | None:
        """Milliseconds after a request's arrival during which a member may still begin."""
        return self.options.deadline_ms or self.spec.failures.deadline_ms

    @cached_property
    def selected(self) -> tuple[bool, ...]:
        """For each member of the ensemble whether it is to answer."""
        return tuple(member in self.members for member in range(len(self.panel.member_names)))

    @cached_property
    def selected_panel(self) -> Panel:
        """The members that are to answer."""
        return self.panel_of(self.members)

    def panel_of(self, members: Sequence[int]) -> Panel:
        """Some of the members.

        Args:
            members: their positions in the ensemble.
        """
        positions = list(members)
        return replace(
            self.panel,
            member_names=tuple(self.panel.member_names[member] for member in positions),
            weights=self.panel.weights[positions],
            member_thresholds=self.panel.member_thresholds[positions],
        )

    @cached_property
    def policy(self) -> BoundPolicy:
        """The policy over all members that are to answer.

        Raises:
            PolicyError: it does not exist, or does not work with these members.
        """
        return parse_policy(
            self.options.policy or self.catalogue.default,
            self.options.policy_parameters,
            replace(self.catalogue, member_names=self.selected_panel.member_names),
        )

    def policy_without(self, available: tuple[str, ...]) -> BoundPolicy:
        """The policy for samples that only some of the members answered.

        It is the same policy; whether it can do with these members shows when it combines. One case
        differs: where a missing member counts as neutral, its vote is no vote, so `majority` still
        asks for as many votes as with all members, as `at_least` always does.

        Args:
            available: names of the members that answered.

        Raises:
            PolicyError: fewer members answered than votes are needed.
        """
        selected, whole = self.selected_panel.member_names, self.policy
        neutral = self.spec.failures.on_failure is OnFailure.NEUTRAL
        if available == selected or not neutral or whole.name not in ("majority", "at_least"):
            return whole
        parameters = {"k": votes_for_majority(len(selected)), **whole.parameters}
        if parameters["k"] > len(available):
            raise PolicyError(
                f"policy {whole.name} needs {parameters['k']} votes, and {len(available)} of "
                f"{len(selected)} members answered"
            )
        catalogue = replace(self.catalogue, member_names=available, allowed=None, named={})
        return parse_policy("at_least", parameters, catalogue)

    @cached_property
    def lazy(self) -> bool:
        """Whether no more members are to run than the decision needs."""
        options = self.options
        wanted = self.spec.policies.lazy if options.lazy is None else options.lazy
        needs_all_members = (
            self.deadline_ms is not None
            or AnswerField.UNCERTAINTY in {*options.include, *(options.fields or ())}
            or options.response is ResponseFormat.FLEXSERVE
        )
        return wanted and not needs_all_members and can_stop_early(self.policy)

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for requests whose samples can be combined together."""
        options = self.options
        return (
            options.policy,
            json.dumps(options.policy_parameters, sort_keys=True, default=str),
            self.members,
            tuple(sorted(options.weights.items())),
            tuple(sorted(options.thresholds.items())),
        )


@dataclass(frozen=True)
class Chooser:
    """Turns the options of requests into checked choices. Not for several threads.

    Attributes:
        spec: the ensemble.
        catalogue: the policies that the deployment offers.
    """

    spec: EnsembleSpec
    catalogue: Catalogue
    _choices: OrderedDict[str, Choice] = field(default_factory=OrderedDict, repr=False)

    @cached_property
    def panel(self) -> Panel:
        """All members with the spec's weights and thresholds."""
        return panel_of(self.spec)

    def choose(self, options: RequestOptions) -> Choice:
        """Check what one client chose.

        Requests of equal options share one choice.

        Raises:
            PolicyError: an unknown policy or member, or one that the deployment does not allow.
        """
        if options.stream is not None or options.frame_order is not None:
            # They belong to one request; a choice that is kept must neither differ by them nor
            # hold them.
            options = replace(options, stream=None, frame_order=None)
        if any(isinstance(value, list | dict) for value in options.policy_parameters.values()):
            # No policy takes such a parameter, and it may be nested too deeply to be written.
            return self._checked(options)
        # Not the options themselves: to Python 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        key = repr(options)
        kept = self._choices.get(key)
        if kept is not None:
            self._choices.move_to_end(key)
            return kept
        choice = self._checked(options)
        if len(key) <= _MAX_KEY_CHARACTERS:
            self._choices[key] = choice
            if len(self._choices) > _MAX_CHOICES:
                self._choices.popitem(last=False)
        return choice

    def _checked(self, options: RequestOptions) -> Choice:
        panel = self._panel_for(options)
        names = options.members or panel.member_names
        members = tuple(panel.member_names.index(name) for name in names)
        choice = Choice(self.spec, self.catalogue, options, panel, members)
        _ = choice.policy
        if self.spec.task is Task.REGRESSION and AnswerField.UNCERTAINTY in options.include:
            raise PolicyError("uncertainty needs probabilities; a regression gives its spread")
        if self.spec.task is Task.REGRESSION and options.smooth is Smoothing.MAJORITY:
            raise PolicyError("a regression has no majority; choose smooth=average")
        return choice

    def _panel_for(self, options: RequestOptions) -> Panel:
        """All members, with the weights and thresholds that the client overrides."""
        panel = self.panel
        overrides = {
            "members": options.members or (),
            "weights": options.weights,
            "thresholds": options.thresholds,
        }
        for option, names in overrides.items():
            if names and not self.spec.policies.client_overrides:
                raise PolicyError(
                    f"option {option} is not allowed here (policies.client_overrides in the spec)"
                )
            for name in names:
                if name not in panel.member_names:
                    raise PolicyError(
                        f"option {option}: there is no member {shown(name)}; the members are "
                        f"{', '.join(panel.member_names)}{nearest(name, panel.member_names)}"
                    )
        if options.members and len(set(options.members)) < len(options.members):
            raise PolicyError(f"option members names one twice: {shown_names(options.members)}")
        weights, thresholds = panel.weights.clone(), panel.member_thresholds.clone()
        for name, weight in options.weights.items():
            weights[panel.member_names.index(name)] = weight
        for name, threshold in options.thresholds.items():
            thresholds[panel.member_names.index(name)] = threshold
        return replace(panel, weights=weights, member_thresholds=thresholds)
