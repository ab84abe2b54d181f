"""From the members' scores for the samples of one request to its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base.errors import (
    EnsembleError,
    LateError,
    MemberError,
    PolicyError,
    SampleError,
    busy,
)
from ..base.tasks import Task
from ..engine.runtime import MemberScores, State
from ..policies import Ballot, Outcome
from ..policies.uncertainty import uncertainty
from ..requests.options import AnswerField, OnError, RequestOptions
from ..requests.parsing import ParsedRequest, Sample
from ..spec import OnFailure
from .choice import Choice
from .result import Group, MembersOfSample, Result
from .sequences import smooth


@dataclass(frozen=True)
class Combination:
    """Makes the result of one request.

    Attributes:
        choice: what the client chose.
        request: the request.
        readable: positions in the request of its N samples that could be decoded.
        model: name, version and archive digest, for the answer.
    """

    choice: Choice
    request: ParsedRequest
    readable: Sequence[int]
    model: Mapping[str, str | None]

    def of_outcome(self, outcome: Outcome) -> Result:
        """The result where a lazy policy decided already.

        Args:
            outcome: of the N samples.
        """
        group = Group(indices=tuple(self.readable), ballot=None, outcome=outcome)
        return self._result((group,), {})

    def of_scores(self, columns: range, outputs: MemberScores) -> Result:
        """The result that the policy makes of the members' scores.

        Samples that the same members answered are combined together. A sample that the policy
        cannot decide, because members failed or were late, becomes an error of this sample.

        Args:
            columns: N, where the samples are in the batch.
            outputs: the members' scores for the batch.
        """
        errors: dict[int, EnsembleError] = {}
        groups: list[Group] = []
        for available, missing, positions in self._by_members(columns, outputs):
            indices = tuple(self.readable[position] for position in positions)
            try:
                self._check_enough(available, missing)
                ballot = self._ballot(available, [columns[each] for each in positions], outputs)
                outcome = self._combined(ballot, missing)
            except EnsembleError as error:
                for index in indices:
                    errors[index] = _of_sample(error, self.request.samples[index], missing)
            else:
                groups.append(
                    Group(indices=indices, ballot=ballot, outcome=outcome, missing=missing)
                )
        return self._result(tuple(groups), errors)

    def _by_members(
        self, columns: range, outputs: MemberScores
    ) -> Iterator[tuple[tuple[int, ...], MembersOfSample, list[int]]]:
        """Group the samples for which the same members answered, failed and were late.

        Yields:
            The members that answered, those that did not, and the positions of the samples. Two
            samples for which a member failed with different reasons are in different groups.
        """
        members, names = self.choice.members, self.choice.selected_panel.member_names
        states = outputs.states[:, columns.start : columns.stop].T.tolist()
        # For each member its state, or the reason why it failed.
        groups: dict[tuple[int | str, ...], list[int]] = {}
        for position, (column, of_sample) in enumerate(zip(columns, states, strict=True)):
            reports = tuple(
                outputs.reasons[member, column]
                if of_sample[member] == State.FAILED
                else of_sample[member]
                for member in members
            )
            groups.setdefault(reports, []).append(position)
        for reports, positions in groups.items():
            named = list(zip(names, reports, strict=True))
            missing = MembersOfSample(
                failed={name: report for name, report in named if isinstance(report, str)},
                late=tuple(name for name, report in named if report == State.LATE),
            )
            answered = zip(members, reports, strict=True)
            yield tuple(m for m, report in answered if report == State.ANSWERED), missing, positions

    def _check_enough(self, available: tuple[int, ...], missing: MembersOfSample) -> None:
        """Check that enough members answered for the deployment's rule (``failures``)."""
        failures = self.choice.spec.failures
        drops = failures.on_failure is not OnFailure.FAIL
        if drops and len(available) >= failures.min_members:
            return
        if not missing.failed and not missing.late:
            return
        consequence = (
            f"; {len(available)} members answered, and failures.min_members is "
            f"{failures.min_members}"
            if drops
            else ""
        )
        raise self._refusal(missing, consequence)

    def _combined(self, ballot: Ballot, missing: MembersOfSample) -> Outcome:
        """The outcome of the members that answered.

        Raises:
            PolicyError: the policy cannot combine the scores of the members that were asked.
            MemberError, LateError, BusyError: it could, but not without those that are missing.
        """
        choice = self.choice
        try:
            return choice.policy_without(ballot.member_names).combine(ballot)
        except PolicyError as error:
            if missing.failed or missing.late:
                # A policy that refuses even a ballot of all members, here one of no samples, is
                # the client's mistake. One that does not would have answered this request.
                everyone = choice.selected_panel
                no_samples = torch.empty(len(choice.members), 0, len(everyone.thresholds))
                choice.policy.combine(everyone.ballot(no_samples))
                raise self._refusal(missing, f"; {error.message}") from error
            raise

    def _refusal(self, missing: MembersOfSample, consequence: str) -> EnsembleError:
        """The error of a sample that cannot be answered without the members that are missing."""
        if missing.failed:
            reasons = [f"member {name}: {why}" for name, why in missing.failed.items()]
            reasons += [f"member {name}: had not begun in time" for name in missing.late]
            return MemberError(f"{'; '.join(reasons)}{consequence}")
        if self.choice.deadline_ms is None:
            return busy()
        return LateError(
            f"member {', '.join(missing.late)} had not begun when the deadline of "
            f"{self.choice.deadline_ms:g} ms was over{consequence}; allow more time (deadline_ms), "
            "send fewer samples, or let the deployment drop late members (failures.on_failure: "
            "drop)"
        )

    def _ballot(
        self, available: tuple[int, ...], columns: Sequence[int], outputs: MemberScores
    ) -> Ballot:
        choice = self.choice
        everyone = available == choice.members
        panel = choice.selected_panel if everyone else choice.panel_of(available)
        scores, logits = (
            _part(each, available, columns) for each in (outputs.scores, outputs.logits)
        )
        return panel.ballot(scores, logits if bool(logits.isfinite().all()) else None)

    def _result(self, groups: tuple[Group, ...], errors: Mapping[int, EnsembleError]) -> Result:
        spec, policy, options = self.choice.spec, self.choice.policy, self.request.options
        result = Result(
            task=spec.task,
            labels=spec.labels,
            score_labels=spec.score_labels,
            model=self.model,
            policy={"name": policy.name, "parameters": policy.parameters},
            options=options,
            samples=self.request.samples,
            groups=groups,
            errors=errors,
        )
        if AnswerField.UNCERTAINTY in result.fields and spec.task is not Task.REGRESSION:
            ballots = [group.ballot for group in groups if group.ballot is not None]
            measures = [uncertainty(each.scores, each.votes, spec.task) for each in ballots]
            result = replace(result, uncertainties=tuple(measures))
        if options.smooth is not None and groups:
            result = replace(result, smoothed=smooth(result, self.choice.panel.thresholds))
        return result


def refuses(
    errors: Mapping[int, EnsembleError], num_answered: int, options: RequestOptions
) -> bool:
    """Whether failed samples refuse the whole request."""
    return bool(errors) and (options.on_error is OnError.FAIL or num_answered == 0)


def _part(values: Tensor, members: tuple[int, ...], columns: Sequence[int]) -> Tensor:
    """Some members' values (M, N, C) for some samples, whose positions increase.

    They lie in order and without gaps: where its numbers lie may show in how a sum is rounded.
    """
    first, last = columns[0], columns[-1]
    part = values[:, first : last + 1]
    if last - first >= len(columns):
        part = values[:, list(columns)]
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
