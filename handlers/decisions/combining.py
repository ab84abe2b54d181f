"""From what the members say about a batch to the result of one request."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..base.errors import EnsembleError, LateError, MemberError, PolicyError, SampleError, busy
from ..base.quoting import shown, shown_names
from ..base.suggestions import nearest
from ..base.tasks import Task
from ..engine.runtime import Input, MemberScores, Runtime, State
from ..policies import (
    Ballot,
    BoundPolicy,
    Catalogue,
    Outcome,
    Panel,
    can_stop_early,
    combine_lazily,
    joined,
    parse_policy,
    votes_for_majority,
)
from ..policies.uncertainty import uncertainty
from ..requests.options import AnswerField, Form, OnError, RequestOptions, Smoothing
from ..requests.parsing import ParsedRequest, Sample
from ..spec import EnsembleSpec, OnFailure
from .result import Group, MembersOfSample, Result
from .sequences import smooth

_MOST_CHOICES = 256
"""Choices that are kept for requests with the same options."""

_LONGEST_KEY = 2048
"""Characters; options that are written longer are checked anew for each request."""


@dataclass(frozen=True)
class Combiner:
    """The deployment's part: its members and policies. Not for several threads.

    Attributes:
        spec: the ensemble.
        catalogue: the policies that it offers.
        model: name, version and archive digest, for answers.
    """

    spec: EnsembleSpec
    catalogue: Catalogue
    model: Mapping[str, str | None]
    _choices: OrderedDict[str, Choice] = field(default_factory=OrderedDict, repr=False)

    @cached_property
    def panel(self) -> Panel:
        """All members with the spec's weights and thresholds."""
        spec = self.spec
        return Panel(
            task=spec.task,
            member_names=tuple(member.name for member in spec.members),
            weights=torch.tensor([member.voting_weight for member in spec.members]),
            member_thresholds=torch.tensor([spec.thresholds(m) for m in spec.members]),
            thresholds=torch.tensor(spec.thresholds()),
        )

    def choose(self, options: RequestOptions) -> Choice:
        """What one client chose, checked before any member runs.

        Requests of equal options share one choice.

        Raises:
            PolicyError: an unknown policy or member, or one that the deployment does not allow.
        """
        if options.stream is not None or options.frame_order is not None:
            # Of one request alone; what is kept must not differ by them, nor hold them.
            options = replace(options, stream=None, frame_order=None)
        if any(isinstance(value, list | dict) for value in options.policy_parameters.values()):
            # No policy takes such a parameter, and it may be nested too deeply to be written.
            return self._checked(options)
        # Not the options themselves: to Python 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        key = repr(options)
        known = self._choices.get(key)
        if known is not None:
            self._choices.move_to_end(key)
            return known
        choice = self._checked(options)
        if len(key) <= _LONGEST_KEY:
            self._choices[key] = choice
            if len(self._choices) > _MOST_CHOICES:
                self._choices.popitem(last=False)
        return choice

    def _checked(self, options: RequestOptions) -> Choice:
        panel = self._panel_for(options)
        chosen = options.members or panel.member_names
        choice = Choice(self, options, panel, tuple(panel.member_names.index(m) for m in chosen))
        _ = choice.policy
        if self.spec.task is Task.REGRESSION and AnswerField.UNCERTAINTY in options.include:
            raise PolicyError("uncertainty needs probabilities; a regression gives its spread")
        if self.spec.task is Task.REGRESSION and options.smooth is Smoothing.MAJORITY:
            raise PolicyError("a regression has no majority; choose smooth=average")
        return choice

    def _panel_for(self, options: RequestOptions) -> Panel:
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


@dataclass(frozen=True)
class Choice:
    """What one request or several chose: policy, members, weights and thresholds.

    Attributes:
        options: without those of a single request, its stream and the order of its frames.
        panel: all members.
        members: positions of the members that are to answer.
    """

    combiner: Combiner
    options: RequestOptions
    panel: Panel
    members: tuple[int, ...]

    @property
    def deadline_ms(self) -> float | None:
        """How long after the request's arrival a member may still begin."""
        return self.options.deadline_ms or self.combiner.spec.failures.deadline_ms

    @cached_property
    def asked(self) -> tuple[bool, ...]:
        """Of each member whether it is to answer."""
        return tuple(member in self.members for member in range(len(self.panel.member_names)))

    @cached_property
    def _chosen(self) -> Panel:
        """The members that are to answer."""
        return self._panel_of(self.members)

    @cached_property
    def policy(self) -> BoundPolicy:
        """The policy over all members that are to answer.

        Raises:
            PolicyError: it does not exist, or does not work with these members.
        """
        catalogue = self.combiner.catalogue
        return parse_policy(
            self.options.policy or catalogue.default,
            self.options.policy_parameters,
            replace(catalogue, member_names=self._chosen.member_names),
        )

    def _without(self, available: tuple[str, ...]) -> BoundPolicy:
        """The policy for samples that only some of the members answered.

        It is the same policy: whether it can do with these members shows when it combines. But a
        missing member's neutral vote is no vote, so that `majority` then asks for as many votes as
        with all members, as `at_least` always does.

        Raises:
            PolicyError: fewer members answered than votes are needed.
        """
        asked, whole = self._chosen.member_names, self.policy
        neutral = self.combiner.spec.failures.on_failure is OnFailure.NEUTRAL
        if available == asked or not neutral or whole.name not in ("majority", "at_least"):
            return whole
        parameters = {"k": votes_for_majority(len(asked)), **whole.parameters}
        if parameters["k"] > len(available):
            raise PolicyError(
                f"policy {whole.name} needs {parameters['k']} votes, and {len(available)} of "
                f"{len(asked)} members answered"
            )
        catalogue = replace(self.combiner.catalogue, member_names=available, allowed=None, named={})
        return parse_policy("at_least", parameters, catalogue)

    @cached_property
    def lazy(self) -> bool:
        """Whether no more members are to run than the decision needs."""
        options = self.options
        asked = self.combiner.spec.policies.lazy if options.lazy is None else options.lazy
        needs_members = (
            self.deadline_ms is not None
            or AnswerField.UNCERTAINTY in {*options.include, *(options.fields or ())}
            or options.response is Form.FLEXSERVE
        )
        return asked and not needs_members and can_stop_early(self.policy)

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

    def run_lazily(
        self, runtime: Runtime, images: Sequence[Input], end: float = math.inf
    ) -> Outcome:
        """The outcome of N samples, from as few members as decide it.

        Members run from the cheapest on, where the policy leaves the order open.

        Args:
            runtime: the members.
            images: N, as `Runtime.run` takes them.
            end: the time of ``time.monotonic`` from which on no further micro-batch begins.

        Raises:
            BusyError: samples were left at the end.
            MemberError: a member failed, or gave NaN; run all members instead.
        """
        panel, policy = self._chosen, self.policy
        order = None
        if policy.name != "cascade":
            cost = [runtime.seconds[m] for m in self.members]
            order = sorted(range(len(cost)), key=cost.__getitem__)
        outcomes = []
        chunk = self.combiner.spec.runtime.micro_batch
        for start in range(0, len(images), chunk):
            if start and time.monotonic() > end:
                raise busy()
            inputs = runtime.inputs(images[start : start + chunk])
            outcomes.append(
                combine_lazily(
                    policy,
                    panel,
                    lambda member, rows, inputs=inputs: inputs.scores(  # type: ignore[misc]
                        self.members[member], rows
                    ),
                    samples=len(images[start : start + chunk]),
                    order=order,
                )
            )
        return joined(outcomes)

    def result_of(
        self, request: ParsedRequest, readable: Sequence[int], outcome: Outcome
    ) -> Result:
        """The result of a request whose outcome is known already."""
        group = Group(indices=tuple(readable), ballot=None, outcome=outcome)
        return self._result(request, (group,), {})

    def result(
        self, request: ParsedRequest, readable: Sequence[int], rows: range, outputs: MemberScores
    ) -> Result:
        """Combine.

        Args:
            request: the request.
            readable: positions of its N samples that reached the members.
            rows: N, where they are in the batch.
            outputs: what the members say about the batch.

        Raises:
            PolicyError: the policy cannot combine these scores.
        """
        errors: dict[int, EnsembleError] = {}
        groups: list[Group] = []
        for available, missing, positions in self._by_members(rows, outputs):
            indices = tuple(readable[position] for position in positions)
            try:
                self._check_enough(available, missing)
                ballot = self._ballot(available, [rows[each] for each in positions], outputs)
                outcome = self._combined(ballot, missing)
            except EnsembleError as error:
                for index in indices:
                    errors[index] = _of_sample(error, request.samples[index], missing)
            else:
                groups.append(
                    Group(indices=indices, ballot=ballot, outcome=outcome, missing=missing)
                )
        return self._result(request, tuple(groups), errors)

    def _by_members(
        self, rows: range, outputs: MemberScores
    ) -> Iterator[tuple[tuple[int, ...], MembersOfSample, list[int]]]:
        """Group the samples for which the same members answered, failed and were late.

        Yields:
            The members that answered, those that did not, and the positions of the samples. Two
            samples for which a member failed with different reasons are in different groups.
        """
        states = outputs.states[:, rows.start : rows.stop].T.tolist()
        # Of each member its state, or the reason why it failed.
        groups: dict[tuple[int | str, ...], list[int]] = {}
        for position, (row, found) in enumerate(zip(rows, states, strict=True)):
            reports = tuple(
                outputs.reasons[m, row] if found[m] == State.FAILED else found[m]
                for m in self.members
            )
            groups.setdefault(reports, []).append(position)
        for reports, positions in groups.items():
            named = list(zip(self._chosen.member_names, reports, strict=True))
            missing = MembersOfSample(
                failed={name: report for name, report in named if isinstance(report, str)},
                late=tuple(name for name, report in named if report == State.LATE),
            )
            answered = zip(self.members, reports, strict=True)
            yield tuple(m for m, report in answered if report == State.ANSWERED), missing, positions

    def _check_enough(self, available: tuple[int, ...], missing: MembersOfSample) -> None:
        failures = self.combiner.spec.failures
        drops = failures.on_failure is not OnFailure.FAIL
        if drops and len(available) >= failures.min_members:
            return
        if not missing.failed and not missing.late:
            return
        short = (
            f"; {len(available)} members answered, and failures.min_members is "
            f"{failures.min_members}"
            if drops
            else ""
        )
        raise self._refusal(missing, short)

    def _combined(self, ballot: Ballot, missing: MembersOfSample) -> Outcome:
        """The outcome of the members that answered.

        Raises:
            PolicyError: the policy cannot combine the scores of the members that were asked.
            MemberError, LateError, BusyError: it could, but not without those that are missing.
        """
        try:
            return self._without(ballot.member_names).combine(ballot)
        except PolicyError as error:
            if missing.failed or missing.late:
                # A policy that refuses even a ballot of all members, here one of no samples, is
                # the client's mistake. One that does not would have answered this request.
                everyone = self._chosen
                no_samples = torch.empty(len(self.members), 0, len(everyone.thresholds))
                self.policy.combine(everyone.ballot(no_samples))
                raise self._refusal(missing, f"; {error.message}") from error
            raise

    def _refusal(self, missing: MembersOfSample, consequence: str) -> EnsembleError:
        """The error of a sample that cannot be answered without the members that are missing."""
        if missing.failed:
            reasons = [f"member {name}: {why}" for name, why in missing.failed.items()]
            reasons += [f"member {name}: had not begun in time" for name in missing.late]
            return MemberError(f"{'; '.join(reasons)}{consequence}")
        if self.deadline_ms is None:
            return busy()
        return LateError(
            f"member {', '.join(missing.late)} had not begun when the deadline of "
            f"{self.deadline_ms:g} ms was over{consequence}; allow more time (deadline_ms), send "
            "fewer samples, or let the deployment drop late members (failures.on_failure: drop)"
        )

    def _ballot(
        self, available: tuple[int, ...], rows: Sequence[int], outputs: MemberScores
    ) -> Ballot:
        panel = self._chosen if available == self.members else self._panel_of(available)
        scores, logits = (_part(each, available, rows) for each in (outputs.scores, outputs.logits))
        return panel.ballot(scores, logits if bool(logits.isfinite().all()) else None)

    def _panel_of(self, members: Sequence[int]) -> Panel:
        chosen = list(members)
        return replace(
            self.panel,
            member_names=tuple(self.panel.member_names[m] for m in chosen),
            weights=self.panel.weights[chosen],
            member_thresholds=self.panel.member_thresholds[chosen],
        )

    def _result(
        self,
        request: ParsedRequest,
        groups: tuple[Group, ...],
        errors: Mapping[int, EnsembleError],
    ) -> Result:
        spec, options = self.combiner.spec, request.options
        result = Result(
            task=spec.task,
            labels=spec.labels,
            score_labels=spec.score_labels,
            model=self.combiner.model,
            policy={"name": self.policy.name, "parameters": self.policy.parameters},
            options=options,
            samples=request.samples,
            groups=groups,
            errors=errors,
        )
        if AnswerField.UNCERTAINTY in result.fields and spec.task is not Task.REGRESSION:
            ballots = [group.ballot for group in groups if group.ballot is not None]
            measures = [uncertainty(each.scores, each.votes, spec.task) for each in ballots]
            result = replace(result, uncertainties=tuple(measures))
        if options.smooth is not None and groups:
            result = replace(result, smoothed=smooth(result, self.panel.thresholds))
        return result


def refuses(errors: Mapping[int, EnsembleError], answered: int, options: RequestOptions) -> bool:
    """Whether failed samples refuse the whole request."""
    return bool(errors) and (options.on_error is OnError.FAIL or answered == 0)


def _part(values: Tensor, members: tuple[int, ...], rows: Sequence[int]) -> Tensor:
    """Some members' values (M, N, C) for some samples, whose positions increase.

    They lie in order and without gaps: where its numbers lie may show in how a sum is rounded.
    """
    first, last = rows[0], rows[-1]
    part = values[:, first : last + 1]
    if last - first >= len(rows):
        part = values[:, list(rows)]
    return part.contiguous() if members == tuple(range(len(values))) else part[list(members)]


def _of_sample(error: EnsembleError, sample: Sample, missing: MembersOfSample) -> EnsembleError:
    """The error with the sample's name.

    Numbers that a client preprocessed itself may be such that a member overflows or fails, which is
    the client's mistake. A member that is late is not.
    """
    message = f"{sample.where}: {error.message}"
    preprocessed = isinstance(sample.data, Tensor) and sample.data.is_floating_point()
    if preprocessed and isinstance(error, MemberError) and not missing.late:
        return SampleError(message, sample=sample.name, index=sample.index)
    return type(error)(message)
