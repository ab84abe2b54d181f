"""One request's result, and the fields of its answer sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..base.tasks import Task
from ..decisions.result import Group, Result
from ..policies.uncertainty import Uncertainty
from ..requests.options import AnswerField
from .encoding import error_content, numbers


def content(result: Result, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The answer as it is written by default; ``predictions`` is KServe's and TF Serving's key.

    Args:
        result: what is to be said.
        rows: its `predictions`, if they are there already.
    """
    written: dict[str, Any] = {}
    if AnswerField.MODEL in result.fields:
        written["model"] = dict(result.model)
    if AnswerField.POLICY in result.fields:
        written["policy"] = dict(result.policy)
    written |= sequence(result)
    written["predictions"] = predictions(result) if rows is None else rows
    return written


_NUMBER = 16
"""Bytes of a number in JSON, with what separates it from its neighbours."""

_OPINION = 100
"""Bytes of one answer (the ensemble's or a member's) without its labels."""


def estimated_bytes(result: Result) -> int:
    """About how long the answer will be, before it is written; seldom less than it really is."""
    several = result.task is Task.MULTILABEL
    by_label = (
        AnswerField.SCORES in result.fields
        or result.task is Task.REGRESSION
        or (several and result.options.fields is None)
    )
    texts = [len(label) + _NUMBER for label in result.score_labels]
    scores_bytes = sum(texts) if by_label else 0
    if result.options.top_k is not None:
        scores_bytes += sum(sorted(texts)[-result.options.top_k :]) + _OPINION
    total = sum(_OPINION + len(sample.name) for sample in result.samples)
    total += sum(_OPINION + len(error.message) for error in result.errors.values())
    for group in result.groups:
        samples, ballot = len(group.indices), group.ballot
        opinions = 1 + len(group.outcome.spread) + (result.smoothed is not None)
        decided = group.outcome.decisions
        chosen = 0 if decided is None else int(decided.sum())
        if ballot is not None and AnswerField.MEMBERS in result.fields:
            opinions += len(ballot.member_names)
            total += samples * sum(map(len, ballot.member_names))
            if several:
                chosen += int(ballot.votes.sum())
        total += samples * opinions * (_OPINION + scores_bytes) + chosen * max(texts)
        total += samples * sum(len(text) for text in group.missing.failed.values())
    return total


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
    return predictions_of([result])[0]


def predictions_of(results: Sequence[Result]) -> list[list[dict[str, Any]]]:
    """The `predictions` of several results whose clients want the same.

    Args:
        results: of one deployment, with the same `Result.written_together_key`.
    """
    first = results[0]
    parts = [part for each in results for group in each.groups for part in _opinions(each, group)]
    rows: Iterator[dict[str, Any]] = iter(())
    if parts:
        scores = torch.cat([scores for scores, _ in parts])
        decisions = [decisions for _, decisions in parts if decisions is not None]
        joined = torch.cat(decisions) if decisions else None
        rows = iter(answers_of(first, scores, joined, first.fields, first.options.top_k))
    return [_predictions(result, rows) for result in results]


def _opinions(result: Result, group: Group) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Scores and decisions, (rows, C), of the ensemble and, if wanted, of each member."""
    yield group.outcome.scores, group.outcome.decisions
    if AnswerField.MEMBERS in result.fields and group.ballot is not None:
        votes = None if result.task is Task.REGRESSION else group.ballot.votes.flatten(0, 1)
        yield group.ballot.scores.flatten(0, 1), votes


def _predictions(result: Result, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the answers that belong to its `_opinions`, from the next one on."""
    answers: dict[int, dict[str, Any]] = {}
    uncertainties = result.uncertainties or (None,) * len(result.groups)
    for group, uncertainty in zip(result.groups, uncertainties, strict=True):
        answers |= _group_answers(result, group, uncertainty, rows)
    if result.smoothed is not None:
        for index, answer in zip(result.smoothed.indices, _smoothed_answers(result), strict=True):
            answers[index]["smoothed"] = answer
    for index, error in result.errors.items():
        answers[index] = {"sample": result.samples[index].name, "error": error_content(error)}
    return [answers[index] for index in range(len(result.samples))]


def _group_answers(
    result: Result,
    group: Group,
    uncertainty: Uncertainty | None,
    rows: Iterator[dict[str, Any]],
) -> dict[int, dict[str, Any]]:
    outcome, samples = group.outcome, len(group.indices)
    combined = list(islice(rows, samples))
    columns: dict[str, list[Any]] = {}
    if outcome.abstained is not None:
        columns["abstained"] = outcome.abstained.tolist()
        for answer, abstained in zip(combined, columns["abstained"], strict=True):
            if abstained:
                # Presence has no label for "neither", so the flag alone would be overlooked.
                answer |= {k: v for k, v in (("label", None), ("labels", [])) if k in answer}
    for name, values in outcome.spread.items():
        columns[name] = _by_label(result, numbers(values))
    if uncertainty is not None:
        columns["uncertainty"] = _uncertainty_rows(uncertainty)
    if outcome.members_used is not None:
        columns["members_used"] = outcome.members_used.tolist()
    if AnswerField.MEMBERS in result.fields and group.ballot is not None:
        names = group.ballot.member_names
        of_members = list(islice(rows, len(names) * samples))
        columns["members"] = [
            dict(zip(names, of_members[row::samples], strict=True)) for row in range(samples)
        ]
    if group.missing.failed:
        columns["failed_members"] = [dict(group.missing.failed)] * samples
    if group.missing.late:
        columns["late_members"] = [list(group.missing.late)] * samples
    answers, is_named = {}, AnswerField.SAMPLE in result.fields
    for row, index in enumerate(group.indices):
        named = {"sample": result.samples[index].name} if is_named else {}
        extra = {name: values[row] for name, values in columns.items()}
        answers[index] = named | combined[row] | extra
    return answers


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
    columns: dict[str, list[Any]] = {}
    if decisions is None:
        if AnswerField.VALUES in fields:
            columns["values"] = _by_label(result, numbers(scores))
        return _rows(columns, len(scores))
    labels = _labels(result, decisions)
    several = result.task is Task.MULTILABEL
    if AnswerField.LABEL in fields and not several:
        columns["label"] = [names[0] if len(names) == 1 else None for names in labels]
    if AnswerField.LABELS in fields:
        columns["labels"] = labels
    if AnswerField.SCORE in fields and not several:
        columns["score"] = numbers(_best_scores(scores, decisions))
    # Several labels have no one score: they are given by label unless the client narrows.
    by_label = AnswerField.SCORES in fields or (several and result.options.fields is None)
    # Decimals take their time, and of a thousand labels the best one is asked for most often.
    rows = numbers(scores) if by_label or top_k is not None else []
    if by_label:
        columns["scores"] = _by_label(result, rows)
    if top_k is not None:
        columns["top_k"] = [_best(row, result.score_labels, top_k) for row in rows]
    return _rows(columns, len(scores))


def _rows(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    return [{name: values[row] for name, values in columns.items()} for row in range(count)]


def _by_label(result: Result, rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [dict(zip(result.score_labels, row, strict=True)) for row in rows]


def _labels(result: Result, decisions: Tensor) -> list[list[str]]:
    """The labels chosen for each sample."""
    if result.task is Task.PRESENCE:
        return [[result.labels[int(flag)]] for flag in decisions[:, 0].tolist()]
    labels: list[list[str]] = [[] for _ in range(len(decisions))]
    for row, label in decisions.nonzero().tolist():
        labels[row].append(result.score_labels[label])
    return labels


def _best_scores(scores: Tensor, decisions: Tensor) -> Tensor:
    """(N,), of the labels chosen the best, where none is chosen of all; the first one of equals."""
    beaten = ~decisions & decisions.any(dim=-1, keepdim=True)
    best = scores.masked_fill(beaten, -torch.inf).argmax(dim=-1, keepdim=True)
    return scores.gather(-1, best).squeeze(-1)


def _best(scores: list[float], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    best = sorted(range(len(scores)), key=lambda label: -scores[label])[:top_k]
    return [{"label": labels[label], "score": scores[label]} for label in best]
