"""Checks that a candidate (`rollout` in the spec) fits the ensemble that it is tried in."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.tasks import Task
from .ensemble import EnsembleSpec
from .rollout import Rollout, RolloutMode
from .strict_yaml import Place, Problem

_PLACE: Place = ("rollout",)


def check_rollout(spec: EnsembleSpec) -> Iterator[Problem]:
    """Find what is wrong with the section `rollout`, if the spec has one."""
    rollout = spec.rollout
    if rollout is None:
        return
    # Later checks would report a misspelt name once more, in other words.
    for check in (_check_names, _check_members):
        problems = list(check(spec, rollout))
        yield from problems
        if problems:
            return
    if rollout.mode is RolloutMode.CANARY:
        if rollout.share is None:
            yield Problem(_PLACE, "canary needs share, e.g. share: 0.05")
    else:
        yield from _check_shadow(spec, rollout)


def _check_names(spec: EnsembleSpec, rollout: Rollout) -> Iterator[Problem]:
    """Check that the members that the candidate names exist."""
    names = tuple(member.name for member in spec.members)
    for key, chosen in (("new_members", rollout.new_members), ("members", rollout.members or ())):
        for index, name in enumerate(chosen):
            if name not in names:
                yield Problem((*_PLACE, key, index), "there is no such member", name, names)
        if len(set(chosen)) < len(chosen):
            yield Problem((*_PLACE, key), "names a member twice")


def _check_members(spec: EnsembleSpec, rollout: Rollout) -> Iterator[Problem]:
    """Check that both sides have members that can vote, and that they are not the same."""
    names = {member.name for member in spec.members}
    if names <= set(rollout.new_members):
        yield Problem(
            (*_PLACE, "new_members"), "names all members, so that the current ensemble has none"
        )
        return
    unused = set(rollout.new_members) - set(rollout.members or names)
    if unused:
        yield Problem(
            (*_PLACE, "new_members"),
            f"{', '.join(sorted(unused))} would never run: add it to rollout.members",
        )
    same_policy = rollout.policy in (None, spec.policies.default)
    if spec.current_members == spec.candidate_members and same_policy:
        yield Problem(
            _PLACE, "the candidate is the current ensemble: set new_members, members or policy"
        )
    for side, positions in (
        ("current ensemble", spec.current_members),
        ("candidate", spec.candidate_members),
    ):
        if all(spec.members[position].voting_weight == 0 for position in positions):
            yield Problem(_PLACE, f"the {side} needs a member with a voting_weight above 0")
        if spec.failures.min_members > len(positions):
            yield Problem(
                ("failures", "min_members"), f"the {side} has only {len(positions)} members"
            )


def _check_shadow(spec: EnsembleSpec, rollout: Rollout) -> Iterator[Problem]:
    """Check that decisions can be compared, and on the inputs that exist already."""
    if rollout.share is not None:
        yield Problem((*_PLACE, "share"), "belongs to canary: a shadow sees all requests")
    if spec.task is Task.REGRESSION:
        yield Problem((*_PLACE, "mode"), "a shadow compares labels, and a regression has none")
    if spec.policies.lazy:
        yield Problem(
            (*_PLACE, "mode"),
            "a shadow needs the scores of all members, which policies.lazy does not compute",
        )
    if len(spec.preprocessing) != 1 and any(each.preprocessing is None for each in spec.members):
        return  # Another check reports the member without a preprocessing.
    existing = [spec.preprocessing_of(spec.members[each]) for each in spec.current_members]
    for position, member in enumerate(spec.members):
        if member.name in rollout.new_members and spec.preprocessing_of(member) not in existing:
            yield Problem(
                ("members", position),
                "a new member of a shadow must have the preprocessing of a current member, because "
                "images are not decoded once more for it; mode: canary allows another",
            )
