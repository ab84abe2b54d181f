"""Estimates how many bytes an answer will have, so that one that is too large is not written."""

from __future__ import annotations

from ..base.tasks import Task
from ..decisions.result import Result
from ..requests.options import AnswerField

_NUMBER_BYTES = 16
"""Bytes of a number in a JSON answer, with the characters that separate it from the next one."""

_ENTRY_BYTES = 100
"""Bytes of one entry of a JSON answer, of the ensemble or of a member, without its labels."""

_FLOAT32_TEXT_BYTES = 14
"""Upper bound of the bytes of a float32 in a list of JSON numbers; in binary data it has 4."""


def estimate_number_bytes(result: Result) -> int:
    """Estimate the bytes of an answer that consists of the scores of all members and labels."""
    num_scores = len(result.samples) * len(result.score_labels) * (1 + len(result.member_names))
    return num_scores * _FLOAT32_TEXT_BYTES


def estimate_json_bytes(result: Result) -> int:
    """Estimate the bytes of a JSON answer before it is written; the estimate is seldom too low."""
    is_multilabel = result.task is Task.MULTILABEL
    has_scores_by_label = (
        AnswerField.SCORES in result.fields
        or result.task is Task.REGRESSION
        or (is_multilabel and result.options.fields is None)
    )
    label_bytes = [len(label) + _NUMBER_BYTES for label in result.score_labels]
    scores_bytes = sum(label_bytes) if has_scores_by_label else 0
    if result.options.top_k is not None:
        scores_bytes += sum(sorted(label_bytes)[-result.options.top_k :]) + _ENTRY_BYTES
    total = sum(_ENTRY_BYTES + len(sample.name) for sample in result.samples)
    total += sum(_ENTRY_BYTES + len(error.message) for error in result.errors.values())
    for group in result.groups:
        num_samples, ballot = len(group.indices), group.ballot
        num_entries = 1 + len(group.outcome.spread) + (result.smoothed is not None)
        decisions = group.outcome.decisions
        num_chosen = 0 if decisions is None else int(decisions.sum())
        if ballot is not None and AnswerField.MEMBERS in result.fields:
            num_entries += len(ballot.member_names)
            total += num_samples * sum(map(len, ballot.member_names))
            if is_multilabel:
                num_chosen += int(ballot.votes.sum())
        total += num_samples * num_entries * (_ENTRY_BYTES + scores_bytes) + num_chosen * max(
            label_bytes
        )
        total += num_samples * sum(len(text) for text in group.missing.failed.values())
    return total
