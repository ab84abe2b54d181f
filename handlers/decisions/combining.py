"""Combines the members' scores for one request into its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..base.errors import EnsembleError, LateError, MemberError, PolicyError, SampleError, busy
from ..base.tasks import Task
from ..engine.member_scores import MemberScores
from ..policies import Ballot, Outcome
from ..policies.uncertainty import uncertainty
from ..requests.options import AnswerField, OnError, RequestOptions
from ..requests.parsing import ParsedRequest, Sample
from ..spec import OnFailure
from .choosing import Choice
from .grouping import SampleGroup, ballot_of, group_samples
from .result import Group, MembersOfSample, Result
from .sequences import smooth


def combine(
    choice: Choice,
    request: ParsedRequest,
    indices: Sequence[int],
    rows: range,
    outputs: MemberScores,
) -> Result:
    """Combine the scores of a request's samples; a sample for which this fails has an error.

    Args:
        choice: what the client chose.
        request: the request.
        indices: positions in the request of its N readable samples.
        rows: positions of these N samples in the batch.
        outputs: scores of the batch.
    """
    errors: dict[int, EnsembleError] = {}
    groups: list[Group] = []
    for group in group_samples(choice, rows, outputs):
        group_indices = tuple(indices[position] for position in group.positions)
        try:
            _check_enough_members(choice, group)
            ballot = ballot_of(choice, group, rows, outputs)
            outcome = _combine_ballot(choice, ballot, group.missing)
        except EnsembleError as error:
            for index in group_indices:
                errors[index] = _name_sample(error, request.samples[index], group.missing)
        else:
            groups.append(
                Group(indices=group_indices, ballot=ballot, outcome=outcome, missing=group.missing)
            )
    return _make_result(choice, request, tuple(groups), errors)


def result_of_outcome(
    choice: Choice, request: ParsedRequest, indices: Sequence[int], outcome: Outcome
) -> Result:
    """Make the result of a request whose members ran lazily, from the outcome of that run.

    Args:
        choice: what the client chose.
        request: the request.
        indices: positions in the request of its N readable samples.
        outcome: what the policy made of these N samples.
    """
    group = Group(indices=tuple(indices), ballot=None, outcome=outcome)
    return _make_result(choice, request, (group,), {})


def is_refused(
    errors: Mapping[int, EnsembleError], num_answered: int, options: RequestOptions
) -> bool:
    """Return whether the errors of single samples refuse the whole request.

    Args:
        errors: position in the request -> error.
        num_answered: number of samples without an error.
        options: the request's options; `on_error` tells whether failed samples are skipped.
    """
    return bool(errors) and (options.on_error is OnError.FAIL or num_answered == 0)


def _check_enough_members(choice: Choice, group: SampleGroup) -> None:
    """Check that as many members answered as the deployment demands.

    Raises:
        MemberError, LateError, BusyError: too few members answered.
    """
    failures, missing = choice.chooser.spec.failures, group.missing
    drops = failures.on_failure is not OnFailure.FAIL
    if drops and len(group.members) >= failures.min_members:
        return
    if not missing.failed and not missing.late:
        return
    consequence = (
        f"; {len(group.members)} members answered, and failures.min_members is "
        f"{failures.min_members}"
        if drops
        else ""
    )
    raise _missing_members_error(choice, missing, consequence)


def _combine_ballot(choice: Choice, ballot: Ballot, missing: MembersOfSample) -> Outcome:
    """Combine the scores of the members that answered.

    Raises:
        PolicyError: the policy could not combine the scores of all chosen members either.
        MemberError, LateError, BusyError: only the missing members keep the policy from combining.
    """
    try:
        return choice.policy_for(ballot.member_names).combine(ballot)
    except PolicyError as error:
        if missing.failed or missing.late:
            # The policy is tried on a ballot of all chosen members, without samples. If it refuses
            # that too, the mistake is the client's; if not, the missing members are the reason.
            panel = choice.chosen_panel
            no_samples = torch.empty(len(choice.members), 0, len(panel.thresholds))
            choice.policy.combine(panel.ballot(no_samples))
            raise _missing_members_error(choice, missing, f"; {error.message}") from error
        raise


def _missing_members_error(
    choice: Choice, missing: MembersOfSample, consequence: str
) -> EnsembleError:
    """Make the error of a sample that cannot be answered without the missing members."""
    if missing.failed:
        reasons = [f"member {name}: {reason}" for name, reason in missing.failed.items()]
        reasons += [f"member {name}: had not begun in time" for name in missing.late]
        return MemberError(f"{'; '.join(reasons)}{consequence}")
    if choice.deadline_ms is None:
        return busy()
    return LateError(
        f"member {', '.join(missing.late)} had not begun when the deadline of "
        f"{choice.deadline_ms:g} ms was over{consequence}; allow more time (deadline_ms), send "
        "fewer samples, or let the deployment drop late members (failures.on_failure: drop)"
    )


def _make_result(
    choice: Choice,
    request: ParsedRequest,
    groups: tuple[Group, ...],
    errors: Mapping[int, EnsembleError],
) -> Result:
    """Put the groups into a result, with uncertainty and smoothing if the client wants them."""
    spec, options = choice.chooser.spec, request.options
    result = Result(
        task=spec.task,
        labels=spec.labels,
        score_labels=spec.score_labels,
        model=choice.chooser.model,
        policy={"name": choice.policy.name, "parameters": choice.policy.parameters},
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
        result = replace(result, smoothed=smooth(result, choice.panel.thresholds))
    return result


def _name_sample(error: EnsembleError, sample: Sample, missing: MembersOfSample) -> EnsembleError:
    """Add the sample's name to an error, and decide whose mistake it is.

    A client that preprocesses samples itself can send numbers with which a member overflows or
    fails. Such a failure is the client's mistake; a late member is not.
    """
    message = f"{sample.where}: {error.message}"
    preprocessed = isinstance(sample.data, Tensor) and sample.data.is_floating_point()
    if preprocessed and isinstance(error, MemberError) and not missing.late:
        return SampleError(message, sample=sample.name, index=sample.index)
    return type(error)(message)
