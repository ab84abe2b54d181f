"""Puts labels and scores of samples into the dicts of which JSON answers consist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.tasks import Task
from ..decisions.result import Result
from ..requests.options import AnswerField
from .encoding import to_json_numbers


def label_rows(
    result: Result,
    scores: Tensor,
    decisions: Tensor | None,
    fields: frozenset[AnswerField],
    top_k: int | None,
) -> list[dict[str, Any]]:
    """Make one dict of labels and scores for each sample.

    Args:
        result: result with the task, the labels, and the fields that the client chose.
        scores: (N, C) float32.
        decisions: (N, C) bool; None for regression.
        fields: which of label, labels, score, scores and values to include.
        top_k: also include this many of the best labels; None includes no such list.
    """
    columns: dict[str, list[Any]] = {}
    if decisions is None:
        if AnswerField.VALUES in fields:
            columns["values"] = by_label(result, to_json_numbers(scores))
        return _rows(columns, len(scores))
    labels = _labels(result, decisions)
    is_multilabel = result.task is Task.MULTILABEL
    if AnswerField.LABEL in fields and not is_multilabel:
        columns["label"] = [names[0] if len(names) == 1 else None for names in labels]
    if AnswerField.LABELS in fields:
        columns["labels"] = labels
    if AnswerField.SCORE in fields and not is_multilabel:
        columns["score"] = to_json_numbers(_best_scores(scores, decisions))
    # Several labels have no single score: all are given unless the client chose fields.
    all_scores = AnswerField.SCORES in fields or (is_multilabel and result.options.fields is None)
    # Writing decimals is slow, and most clients ask only for the best of a thousand labels.
    rows = to_json_numbers(scores) if all_scores or top_k is not None else []
    if all_scores:
        columns["scores"] = by_label(result, rows)
    if top_k is not None:
        columns["top_k"] = [_top_k(row, result.score_labels, top_k) for row in rows]
    return _rows(columns, len(scores))


def _rows(columns: Mapping[str, Sequence[Any]], num_rows: int) -> list[dict[str, Any]]:
    """Turn columns into one dict for each row."""
    return [{name: values[row] for name, values in columns.items()} for row in range(num_rows)]


def by_label(result: Result, rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Make a dict of label and value for each row of values."""
    return [dict(zip(result.score_labels, row, strict=True)) for row in rows]


def _labels(result: Result, decisions: Tensor) -> list[list[str]]:
    """Return the names of the labels that are chosen for each sample."""
    if result.task is Task.PRESENCE:
        return [[result.labels[int(flag)]] for flag in decisions[:, 0].tolist()]
    labels: list[list[str]] = [[] for _ in range(len(decisions))]
    for row, label in decisions.nonzero().tolist():
        labels[row].append(result.score_labels[label])
    return labels


def _best_scores(scores: Tensor, decisions: Tensor) -> Tensor:
    """Find each sample's best score among the chosen labels, or among all if none is chosen.

    Of equal scores the first one is taken, because 0.0 and -0.0 are equal but written differently.

    Returns:
        (N,) float32.
    """
    not_candidates = ~decisions & decisions.any(dim=-1, keepdim=True)
    best = scores.masked_fill(not_candidates, -torch.inf).argmax(dim=-1, keepdim=True)
    return scores.gather(-1, best).squeeze(-1)


def _top_k(scores: list[float], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """Return the labels with the highest scores, best first."""
    best = sorted(range(len(scores)), key=lambda label: -scores[label])[:top_k]
    return [{"label": labels[label], "score": scores[label]} for label in best]
