"""Groups the samples of a request by the members that answered them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engine.member_scores import MemberScores, State
from ..policies import Ballot
from .choosing import Choice
from .result import MembersOfSample


@dataclass(frozen=True)
class SampleGroup:
    """Samples of a request that can be combined in one call of a policy.

    Attributes:
        members: positions in the ensemble of the members that answered these samples.
        missing: the chosen members that did not answer these samples, and why.
        positions: positions of the samples among the readable samples of the request.
    """

    members: tuple[int, ...]
    missing: MembersOfSample
    positions: tuple[int, ...]


def group_samples(choice: Choice, rows: range, outputs: MemberScores) -> Iterator[SampleGroup]:
    """Group samples for which the same members answered, failed for the same reason or were late.

    Args:
        choice: what the client chose, which includes the members.
        rows: positions of the request's readable samples in the batch.
        outputs: scores of the batch.
    """
    states = outputs.states[:, rows.start : rows.stop].T.tolist()
    # The key holds for each chosen member its state, or the reason if it failed.
    groups: dict[tuple[int | str, ...], list[int]] = {}
    for position, (row, states_of_row) in enumerate(zip(rows, states, strict=True)):
        reports = tuple(
            outputs.reasons[member, row]
            if states_of_row[member] == State.FAILED
            else states_of_row[member]
            for member in choice.members
        )
        groups.setdefault(reports, []).append(position)
    for reports, positions in groups.items():
        named = list(zip(choice.chosen_panel.member_names, reports, strict=True))
        yield SampleGroup(
            members=tuple(
                member
                for member, report in zip(choice.members, reports, strict=True)
                if report == State.ANSWERED
            ),
            missing=MembersOfSample(
                failed={name: report for name, report in named if isinstance(report, str)},
                late=tuple(name for name, report in named if report == State.LATE),
            ),
            positions=tuple(positions),
        )


def ballot_of(choice: Choice, group: SampleGroup, rows: range, outputs: MemberScores) -> Ballot:
    """Make the ballot of a group: the scores of its members for its samples.

    Args:
        choice: what the client chose, with weights and thresholds.
        group: the group; it has at least one member.
        rows: positions of the request's readable samples in the batch.
        outputs: scores of the batch.
    """
    members = group.members
    panel = choice.chosen_panel if members == choice.members else choice.panel_of(members)
    batch_rows = [rows[position] for position in group.positions]
    scores = _select(outputs.scores, members, batch_rows)
    logits = _select(outputs.logits, members, batch_rows)
    return panel.ballot(scores, logits if bool(logits.isfinite().all()) else None)


def _select(values: Tensor, members: tuple[int, ...], rows: Sequence[int]) -> Tensor:
    """Select members and samples of a tensor (M, N, C); the rows must be in ascending order.

    The copy is contiguous, because the memory layout of the numbers can change how their sum is
    rounded.
    """
    first, last = rows[0], rows[-1]
    selected = values[:, first : last + 1]
    if last - first >= len(rows):
        selected = values[:, list(rows)]
    all_members = members == tuple(range(len(values)))
    return selected.contiguous() if all_members else selected[list(members)]
