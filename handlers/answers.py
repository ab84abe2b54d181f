"""One request's result, and the fields of its answer sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .errors import EnsembleError
from .options import AnswerField, RequestOptions
from .policies import Ballot, Outcome
from .requests import Sample
from .responses import error_content, numbers
from .tasks import Task
from .uncertainty import Uncertainty

DEFAULT_FIELDS = frozenset(AnswerField) - {AnswerField.SCORES, AnswerField.UNCERTAINTY}


@dataclass(frozen=True, kw_only=True)
class MembersOfSample:
    """Which members one sample's answer rests on.

    Attributes:
        failed: member -> why its scores could not be used.
        late: members that had not begun when the deadline was over.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of a request that the same members answered; a request seldom has more than one.

    Attributes:
        indices: positions of the N samples in the request.
        ballot: what the members say about them; None where members ran only as far as needed.
        outcome: what the policy makes of it.
        missing: the members that did not take part.
    """

    indices: tuple[int, ...]
    ballot: Ballot | None
    outcome: Outcome
    missing: MembersOfSample = field(default_factory=MembersOfSample)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Members whose own answers are known."""
        return self.ballot.member_names if self.ballot is not None else ()


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Decisions over a sequence, as `Outcome`, one row for each of `indices`, in time's order."""

    indices: tuple[int, ...]
    scores: Tensor
    decisions: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that is known about one request before it is written down.

    Attributes:
        model: name, version and archive digest.
        policy: name and parameters of the policy.
        samples: all samples of the request, in order.
        errors: position -> why that sample has no answer.
    """

    task: Task
    labels: tuple[str, ...]
    score_labels: tuple[str, ...]
    model: Mapping[str, str | None]
    policy: Mapping[str, Any]
    options: RequestOptions
    samples: tuple[Sample, ...]
    groups: tuple[Group, ...]
    errors: Mapping[int, EnsembleError]
    uncertainties: tuple[Uncertainty, ...] = ()
    smoothed: Smoothed | None = None

    @property
    def fields(self) -> frozenset[AnswerField]:
        """What the client asked for."""
        asked = DEFAULT_FIELDS if self.options.fields is None else frozenset(self.options.fields)
        return asked | frozenset(self.options.include)

    @property
    def answered(self) -> tuple[int, ...]:
        """Positions of the samples that have an answer."""
        return tuple(index for group in self.groups for index in group.indices)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Members that answered at least one sample, in the deployment's order."""
        names = [name for group in self.groups for name in group.member_names]
        return tuple(dict.fromkeys(names))


def content(result: Result) -> dict[str, Any]:
    """The answer as it is written by default; ``predictions`` is KServe's and TF Serving's key."""
    written: dict[str, Any] = {}
    if AnswerField.MODEL in result.fields:
        written["model"] = dict(result.model)
    if AnswerField.POLICY in result.fields:
        written["policy"] = dict(result.policy)
    written |= sequence(result)
    written["predictions"] = predictions(result)
    return written


def sequence(result: Result) -> dict[str, Any]:
    """``stream`` as it was sent, and the decision over the whole sequence."""
    written: dict[str, Any] = {}
    if result.options.stream is not None:
        written["stream"] = result.options.stream
    if result.smoothed is not None:
        written["sequence"] = _smoothed_answers(result)[-1]
    return written


def predictions(result: Result) -> list[dict[str, Any]]:
    """One dict for each sample, in the request's order; a failed one has ``error``."""
    answers: dict[int, dict[str, Any]] = {}
    uncertainties = result.uncertainties or (None,) * len(result.groups)
    for group, uncertainty in zip(result.groups, uncertainties, strict=True):
        answers |= _group_answers(result, group, uncertainty)
    if result.smoothed is not None:
        for index, answer in zip(result.smoothed.indices, _smoothed_answers(result), strict=True):
            answers[index]["smoothed"] = answer
    for index, error in result.errors.items():
        answers[index] = {"sample": result.samples[index].name, "error": error_content(error)}
    return [answers[index] for index in range(len(result.samples))]


def _group_answers(
    result: Result, group: Group, uncertainty: Uncertainty | None
) -> dict[int, dict[str, Any]]:
    fields, top_k = result.fields, result.options.top_k
    outcome = group.outcome
    combined = answers_of(result, outcome.scores, outcome.decisions, fields, top_k)
    columns: dict[str, list[Any]] = {}
    if outcome.abstained is not None:
        columns["abstained"] = outcome.abstained.tolist()
        for answer, abstained in zip(combined, columns["abstained"], strict=True):
            if abstained:
                # Presence has no label for "neither", so the flag alone would be overlooked.
                answer |= {k: v for k, v in (("label", None), ("labels", [])) if k in answer}
    for name, values in outcome.spread.items():
        rows = numbers(values)
        columns[name] = [dict(zip(result.score_labels, row, strict=True)) for row in rows]
    if uncertainty is not None:
        columns["uncertainty"] = _uncertainty_rows(uncertainty)
    if outcome.members_used is not None:
        columns["members_used"] = outcome.members_used.tolist()
    if AnswerField.MEMBERS in fields and group.ballot is not None:
        columns["members"] = _member_rows(result, group.ballot)
    if group.missing.failed:
        columns["failed_members"] = [dict(group.missing.failed)] * len(group.indices)
    if group.missing.late:
        columns["late_members"] = [list(group.missing.late)] * len(group.indices)
    answers = {}
    for row, index in enumerate(group.indices):
        named = {"sample": result.samples[index].name} if AnswerField.SAMPLE in fields else {}
        extra = {name: values[row] for name, values in columns.items()}
        answers[index] = named | combined[row] | extra
    return answers


def _member_rows(result: Result, ballot: Ballot) -> list[dict[str, Any]]:
    votes = None if result.task is Task.REGRESSION else ballot.votes
    by_member = [
        answers_of(
            result,
            ballot.scores[index],
            votes[index] if votes is not None else None,
            result.fields,
            result.options.top_k,
        )
        for index in range(len(ballot.member_names))
    ]
    names = ballot.member_names
    return [dict(zip(names, answers, strict=True)) for answers in zip(*by_member, strict=True)]


def _uncertainty_rows(uncertainty: Uncertainty) -> list[dict[str, float]]:
    columns = (
        numbers(uncertainty.predictive_entropy),
        numbers(uncertainty.mutual_information),
        numbers(uncertainty.disagreement),
    )
    return [
        {"predictive_entropy": total, "mutual_information": information, "disagreement": differ}
        for total, information, differ in zip(*columns, strict=True)
    ]


def _smoothed_answers(result: Result) -> list[dict[str, Any]]:
    assert result.smoothed is not None
    fields = result.fields - {AnswerField.MEMBERS}
    return answers_of(result, result.smoothed.scores, result.smoothed.decisions, fields, None)


def answers_of(
    result: Result,
    scores: Tensor,
    decisions: Tensor | None,
    fields: frozenset[AnswerField],
    top_k: int | None,
) -> list[dict[str, Any]]:
    """Labels and scores, one dict for each sample.

    Args:
        result: for the task and its labels.
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        fields: which of label, labels, score, scores and values are wanted.
        top_k: also give the best labels.
    """
    rows = numbers(scores)
    if decisions is None:
        if AnswerField.VALUES not in fields:
            return [{} for _ in rows]
        return [{"values": dict(zip(result.score_labels, row, strict=True))} for row in rows]
    wanted = {str(field) for field in fields}
    if result.task is Task.MULTILABEL:
        # Several labels have no one score: they are given by label unless the client narrows.
        wanted |= {"scores"} if result.options.fields is None else set()
    answers = []
    for row, flags in zip(rows, decisions.cpu().tolist(), strict=True):
        full = _answer(result, row, flags)
        answer = {name: value for name, value in full.items() if name in wanted}
        if top_k is not None:
            answer["top_k"] = _best(row, result.score_labels, top_k)
        answers.append(answer)
    return answers


def _answer(result: Result, scores: list[float], flags: list[bool]) -> dict[str, Any]:
    by_label = dict(zip(result.score_labels, scores, strict=True))
    labels = [label for label, flag in zip(result.score_labels, flags, strict=True) if flag]
    if result.task is Task.MULTILABEL:
        return {"labels": labels, "scores": by_label}
    if result.task is Task.PRESENCE:
        label = result.labels[int(flags[0])]
        return {"label": label, "labels": [label], "score": scores[0], "scores": by_label}
    best = max(range(len(scores)), key=lambda label: (flags[label], scores[label]))
    return {
        "label": labels[0] if len(labels) == 1 else None,
        "labels": labels,
        "score": scores[best],
        "scores": by_label,
    }


def _best(scores: list[float], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    best = sorted(range(len(scores)), key=lambda label: -scores[label])[:top_k]
    return [{"label": labels[label], "score": scores[label]} for label in best]
