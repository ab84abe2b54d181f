"""Makes JSON answers: the content of a response, and the prediction of each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..base.tasks import Task
from ..decisions.result import Group, Result
from ..policies.uncertainty import Uncertainty
from ..requests.options import AnswerField
from .encoding import error_content, to_json_numbers
from .label_rows import by_label, label_rows


def content(result: Result, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Make the content of a JSON answer; ``predictions`` is the key of KServe and TF Serving.

    Args:
        result: the result of one request.
        rows: its `predictions`, if they exist already.
    """
    answer: dict[str, Any] = {}
    if AnswerField.MODEL in result.fields:
        answer["model"] = dict(result.model)
    if AnswerField.POLICY in result.fields:
        answer["policy"] = dict(result.policy)
    answer |= _sequence_fields(result)
    answer["predictions"] = predictions(result) if rows is None else rows
    return answer


def _sequence_fields(result: Result) -> dict[str, Any]:
    """Make ``stream``, as the client sent it, and ``sequence``, the last smoothed decision."""
    fields: dict[str, Any] = {}
    if result.options.stream is not None:
        fields["stream"] = result.options.stream
    if result.smoothed is not None:
        fields["sequence"] = _smoothed_answers(result)[-1]
    return fields


def predictions(result: Result) -> list[dict[str, Any]]:
    """Make one dict for each sample, in the request's order; a failed sample's has ``error``."""
    return predictions_of([result])[0]


def predictions_of(results: Sequence[Result]) -> list[list[dict[str, Any]]]:
    """Make the `predictions` of several results whose clients want the same fields.

    Args:
        results: results of one deployment with equal `Result.json_row_key`.
    """
    first = results[0]
    blocks = [
        block for each in results for group in each.groups for block in _score_blocks(each, group)
    ]
    rows: Iterator[dict[str, Any]] = iter(())
    if blocks:
        scores = torch.cat([scores for scores, _ in blocks])
        decisions = [decisions for _, decisions in blocks if decisions is not None]
        joined = torch.cat(decisions) if decisions else None
        rows = iter(label_rows(first, scores, joined, first.fields, first.options.top_k))
    return [_predictions(result, rows) for result in results]


def _score_blocks(result: Result, group: Group) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield scores and decisions, (rows, C), of the ensemble, then of its members if included."""
    yield group.outcome.scores, group.outcome.decisions
    if AnswerField.MEMBERS in result.fields and group.ballot is not None:
        votes = None if result.task is Task.REGRESSION else group.ballot.votes.flatten(0, 1)
        yield group.ballot.scores.flatten(0, 1), votes


def _predictions(result: Result, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the predictions of one result.

    Args:
        result: the result of one request.
        rows: dicts of labels and scores of several results, in the order of their `_score_blocks`.
            The next dicts are those of this result.
    """
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
    """Make the predictions of one group; `rows` is the argument of `_predictions`.

    Returns:
        Position in the request -> prediction.
    """
    outcome, num_samples = group.outcome, len(group.indices)
    combined = list(islice(rows, num_samples))
    columns: dict[str, list[Any]] = {}
    if outcome.abstained is not None:
        columns["abstained"] = outcome.abstained.tolist()
        for answer, abstained in zip(combined, columns["abstained"], strict=True):
            if abstained:
                # Presence has no label for an undecided sample, and a client that reads a label
                # may overlook the flag beside it.
                empty: dict[str, Any] = {"label": None, "labels": []}
                answer |= {key: value for key, value in empty.items() if key in answer}
    for name, values in outcome.spread.items():
        columns[name] = by_label(result, to_json_numbers(values))
    if uncertainty is not None:
        columns["uncertainty"] = _uncertainty_rows(uncertainty)
    if outcome.members_used is not None:
        columns["members_used"] = outcome.members_used.tolist()
    if AnswerField.MEMBERS in result.fields and group.ballot is not None:
        names = group.ballot.member_names
        of_members = list(islice(rows, len(names) * num_samples))
        columns["members"] = [
            dict(zip(names, of_members[row::num_samples], strict=True))
            for row in range(num_samples)
        ]
    if group.missing.failed:
        columns["failed_members"] = [dict(group.missing.failed)] * num_samples
    if group.missing.late:
        columns["late_members"] = [list(group.missing.late)] * num_samples
    answers, is_named = {}, AnswerField.SAMPLE in result.fields
    for row, index in enumerate(group.indices):
        named = {"sample": result.samples[index].name} if is_named else {}
        extra = {name: values[row] for name, values in columns.items()}
        answers[index] = named | combined[row] | extra
    return answers


def _uncertainty_rows(uncertainty: Uncertainty) -> list[dict[str, float]]:
    """Make a dict of the three measures of uncertainty for each sample."""
    columns = (
        to_json_numbers(uncertainty.predictive_entropy),
        to_json_numbers(uncertainty.mutual_information),
        to_json_numbers(uncertainty.disagreement),
    )
    return [
        {"predictive_entropy": entropy, "mutual_information": information, "disagreement": share}
        for entropy, information, share in zip(*columns, strict=True)
    ]


def _smoothed_answers(result: Result) -> list[dict[str, Any]]:
    """Make labels and scores of the smoothed decisions, in the order of time."""
    assert result.smoothed is not None
    fields = result.fields - {AnswerField.MEMBERS}
    return label_rows(result, result.smoothed.scores, result.smoothed.decisions, fields, None)
