"""Checks what a client chose, and resolves it to a policy over the members that will run."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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

_MAX_CACHED_CHOICES = 256
"""Number of different option sets whose checked choices are kept."""

_MAX_CACHE_KEY_CHARACTERS = 2048
"""Options whose text is longer are checked anew for each request."""


@dataclass(frozen=True)
class Chooser:
    """Turns the options of a request into a `Choice`, within what the deployment allows.

    Choices are cached by their options. Not thread-safe.

    Attributes:
        spec: the ensemble.
        catalogue: the policies that the deployment offers.
        model: name, version and archive digest, which every answer contains.
        is_candidate: whether requests get the candidate's members and policy (`rollout` in the
            spec) instead of the current ones.
    """

    spec: EnsembleSpec
    catalogue: Catalogue
    model: Mapping[str, str | None]
    is_candidate: bool = False
    _choices: OrderedDict[str, Choice] = field(default_factory=OrderedDict, repr=False)

    @cached_property
    def panel(self) -> Panel:
        """All members of the ensemble, with the weights and thresholds of the spec."""
        spec = self.spec
        return Panel(
            task=spec.task,
            member_names=tuple(member.name for member in spec.members),
            weights=torch.tensor([member.voting_weight for member in spec.members]),
            member_thresholds=torch.tensor([spec.thresholds(member) for member in spec.members]),
            thresholds=torch.tensor(spec.thresholds()),
        )

    @cached_property
    def offered(self) -> tuple[int, ...]:
        """Positions of the members that a request runs unless it chooses some of them."""
        return self.spec.candidate_members if self.is_candidate else self.spec.current_members

    @cached_property
    def offered_names(self) -> tuple[str, ...]:
        """Names of the members from which a request may choose."""
        return tuple(self.panel.member_names[member] for member in self.offered)

    def choose(self, options: RequestOptions) -> Choice:
        """Check the options of a request before any member runs.

        Requests with equal options share one choice.

        Raises:
            PolicyError: the options name a policy or member that does not exist or is not allowed.
        """
        if (options.stream, options.frame_order, options.sticky_key) != (None, None, None):
            # These belong to one request; a cached choice must not depend on them.
            options = replace(options, stream=None, frame_order=None, sticky_key=None)
        if any(isinstance(value, list | dict) for value in options.policy_parameters.values()):
            # No policy has such a parameter, and repr() may fail on one that is nested very deeply.
            return self._check(options)
        # The text is the key, not the options: in Python 1 == 1.0 == True, and 0.0 == -0.0.
        key = repr(options)
        cached = self._choices.get(key)
        if cached is not None:
            self._choices.move_to_end(key)
            return cached
        choice = self._check(options)
        if len(key) <= _MAX_CACHE_KEY_CHARACTERS:
            self._choices[key] = choice
            if len(self._choices) > _MAX_CACHED_CHOICES:
                self._choices.popitem(last=False)
        return choice

    def _check(self, options: RequestOptions) -> Choice:
        """Make the choice of these options, or raise PolicyError."""
        panel = self._panel_with_overrides(options)
        names = options.members or self.offered_names
        choice = Choice(self, options, panel, tuple(map(panel.member_names.index, names)))
        _ = choice.policy  # The property is computed once; a wrong policy is refused here.
        if self.spec.task is Task.REGRESSION and AnswerField.UNCERTAINTY in options.include:
            raise PolicyError("uncertainty needs probabilities; a regression gives its spread")
        if self.spec.task is Task.REGRESSION and options.smooth is Smoothing.MAJORITY:
            raise PolicyError("a regression has no majority; choose smooth=average")
        return choice

    def _panel_with_overrides(self, options: RequestOptions) -> Panel:
        """Make the panel of all members, with the client's weights and thresholds if it gave any.

        Raises:
            PolicyError: the deployment does not let clients override them, or a member that the
                client names does not exist.
        """
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
                if name not in self.offered_names:
                    raise PolicyError(
                        f"option {option}: there is no member {shown(name)}; the members are "
                        f"{', '.join(self.offered_names)}{nearest(name, self.offered_names)}"
                    )
        if options.members and len(set(options.members)) < len(options.members):
            raise PolicyError(
                f"option members names a member twice: {shown_names(options.members)}"
            )
        weights, thresholds = panel.weights.clone(), panel.member_thresholds.clone()
        for name, weight in options.weights.items():
            weights[panel.member_names.index(name)] = weight
        for name, threshold in options.thresholds.items():
            thresholds[panel.member_names.index(name)] = threshold
        return replace(panel, weights=weights, member_thresholds=thresholds)


@dataclass(frozen=True)
class Choice:
    """What a client chose: a policy, members, weights and thresholds.

    Attributes:
        chooser: the chooser that made this choice, with the spec and the catalogue of policies.
        options: options of the request; `stream`, `frame_order` and `sticky_key` are left out.
        panel: all members of the ensemble, with the weights and thresholds of the client.
        members: positions of the chosen members in the ensemble.
    """

    chooser: Chooser
    options: RequestOptions
    panel: Panel
    members: tuple[int, ...]

    @property
    def deadline_ms(self) -> float | None:
        """Milliseconds after the request's arrival until which members may begin to run."""
        return self.options.deadline_ms or self.chooser.spec.failures.deadline_ms

    @cached_property
    def chosen_flags(self) -> tuple[bool, ...]:
        """For each member of the ensemble, whether it was chosen."""
        return tuple(member in self.members for member in range(len(self.panel.member_names)))

    @cached_property
    def chosen_panel(self) -> Panel:
        """The chosen members, with their weights and thresholds."""
        return self.panel_of(self.members)

    @cached_property
    def policy(self) -> BoundPolicy:
        """The policy over all chosen members.

        Raises:
            PolicyError: the policy does not exist, or does not work with these members.
        """
        catalogue = self.chooser.catalogue
        return parse_policy(
            self.options.policy or catalogue.default,
            self.options.policy_parameters,
            replace(catalogue, member_names=self.chosen_panel.member_names),
        )

    def policy_for(self, available: tuple[str, ...]) -> BoundPolicy:
        """Return the policy for samples that only some of the chosen members answered.

        Nearly always this is `policy` itself, which fails later if it cannot combine the scores
        of these members. The exception is a deployment that counts a missing member as neutral:
        `majority` and `at_least` then need as many votes as with all chosen members.

        Args:
            available: names of the members that answered.

        Raises:
            PolicyError: fewer members answered than the policy needs votes.
        """
        all_names, policy = self.chosen_panel.member_names, self.policy
        neutral = self.chooser.spec.failures.on_failure is OnFailure.NEUTRAL
        if available == all_names or not neutral or policy.name not in ("majority", "at_least"):
            return policy
        parameters = {"k": votes_for_majority(len(all_names)), **policy.parameters}
        if parameters["k"] > len(available):
            raise PolicyError(
                f"policy {policy.name} needs {parameters['k']} votes, and {len(available)} of "
                f"{len(all_names)} members answered"
            )
        catalogue = replace(self.chooser.catalogue, member_names=available, allowed=None, named={})
        return parse_policy("at_least", parameters, catalogue)

    @cached_property
    def lazy(self) -> bool:
        """Whether no more members run than the decision needs."""
        options = self.options
        requested = self.chooser.spec.policies.lazy if options.lazy is None else options.lazy
        needs_all_members = (
            self.deadline_ms is not None
            or AnswerField.UNCERTAINTY in {*options.include, *(options.fields or ())}
            or options.response in (ResponseFormat.FLEXSERVE, ResponseFormat.FLEXSERVE_CLASSIFY)
        )
        return requested and not needs_all_members and can_stop_early(self.policy)

    @cached_property
    def group_key(self) -> tuple[object, ...]:
        """A key, equal for choices whose requests can be combined in one call of a policy."""
        options = self.options
        return (
            # Two choosers may have different default policies.
            options.policy or self.chooser.catalogue.default,
            json.dumps(options.policy_parameters, sort_keys=True, default=str),
            self.members,
            tuple(sorted(options.weights.items())),
            tuple(sorted(options.thresholds.items())),
        )

    def panel_of(self, members: Sequence[int]) -> Panel:
        """Make the panel of some members, given by their positions in the ensemble."""
        positions = list(members)
        return replace(
            self.panel,
            member_names=tuple(self.panel.member_names[member] for member in positions),
            weights=self.panel.weights[positions],
            member_thresholds=self.panel.member_thresholds[positions],
        )
