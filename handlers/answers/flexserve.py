"""The response formats ``flexserve`` and ``flexserve-classify`` (Verenich et al. 2020).

They hold the labels of each member, as FlexServe answers on its routes /batch and /classify.
"""

from __future__ import annotations

from typing import Any

from ..base.tasks import Task
from ..decisions.result import Result
from ..requests.options import AnswerField
from .encoding import Response, encode
from .label_rows import label_rows


def write(result: Result) -> Response:
    """Write ``{member: [label, ...]}``, with a label or null for each sample.

    Several labels of one sample are a list.
    """
    return encode(_labels_by_member(result))


def write_first(result: Result) -> Response:
    """Write ``{member: label}`` for the first sample; FlexServe's /classify ignores all others."""
    return encode({name: labels[0] for name, labels in _labels_by_member(result).items()})


def _labels_by_member(result: Result) -> dict[str, list[Any]]:
    """Collect each member's label, or None, for each sample."""
    labels: dict[str, list[Any]] = {
        name: [None] * len(result.samples) for name in result.member_names
    }
    fields = frozenset({AnswerField.LABEL, AnswerField.LABELS, AnswerField.VALUES})
    for group in result.groups:
        ballot = group.ballot
        if ballot is None:
            continue
        votes = None if result.task is Task.REGRESSION else ballot.votes
        for position, name in enumerate(ballot.member_names):
            rows = label_rows(
                result,
                ballot.scores[position],
                votes[position] if votes is not None else None,
                fields,
                None,
            )
            for index, row in zip(group.indices, rows, strict=True):
                labels[name][index] = row.get("label") or row.get("labels") or row.get("values")
    return labels
