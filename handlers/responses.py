"""Results and errors as the JSON that a client gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .errors import EnsembleError, SampleError
from .policies import Outcome
from .tasks import Task

JSON = "application/json"


@dataclass(frozen=True)
class Response:
    """The answer to one request."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def numbers(values: Tensor) -> Any:
    """Nested lists of the shortest decimals that read back as the same float32; None for NaN.

    Args:
        values: float32, any shape.
    """

    def shortest(value: Any) -> Any:
        if isinstance(value, list):
            return [shortest(item) for item in value]
        return float(value) if value not in ("nan", "inf", "-inf") else None

    return shortest(values.detach().cpu().float().numpy().astype(str).tolist())


def encode(content: object, status: int = 200) -> Response:
    """Compact JSON."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8"), status)


def error_content(error: EnsembleError) -> dict[str, Any]:
    """``{"code", "type", "message"}``, and for a sample its name and position."""
    content: dict[str, Any] = {
        "code": error.status,
        "type": type(error).__name__,
        "message": error.message,
    }
    if isinstance(error, SampleError):
        content |= {"sample": error.sample, "index": error.index}
    return content


def encode_error(error: EnsembleError, samples: Sequence[EnsembleError] = ()) -> Response:
    """One request's refusal; `samples` lists every sample that failed, if samples did."""
    content = error_content(error)
    if samples:
        content["samples"] = [error_content(sample) for sample in samples]
    return encode(content, error.status)


@dataclass(frozen=True)
class Answerer:
    """Turns scores into the fields of an answer, for one kind of task."""

    task: Task
    labels: tuple[str, ...]
    score_labels: tuple[str, ...]

    def answers(
        self, scores: Tensor, decisions: Tensor | None, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """One dict for each sample.

        Args:
            scores: (N, C) float32.
            decisions: (N, C) bool; None for regression.
            top_k: also give the best labels.
        """
        rows = numbers(scores)
        if decisions is None:
            return [{"values": dict(zip(self.score_labels, row, strict=True))} for row in rows]
        chosen = decisions.cpu().tolist()
        answers = [self._answer(row, flags) for row, flags in zip(rows, chosen, strict=True)]
        if top_k is not None:
            for answer, row in zip(answers, rows, strict=True):
                best = sorted(range(len(row)), key=lambda label: -row[label])[:top_k]
                answer["top_k"] = [
                    {"label": self.score_labels[label], "score": row[label]} for label in best
                ]
        return answers

    def _answer(self, scores: list[float], chosen: list[bool]) -> dict[str, Any]:
        if self.task is Task.PRESENCE:
            label = self.labels[int(chosen[0])]
            return {"label": label, "labels": [label], "score": scores[0]}
        labels = [label for label, flag in zip(self.score_labels, chosen, strict=True) if flag]
        if self.task is Task.MULTILABEL:
            return {"labels": labels, "scores": dict(zip(self.score_labels, scores, strict=True))}
        best = max(range(len(scores)), key=lambda label: (chosen[label], scores[label]))
        return {
            "label": labels[0] if len(labels) == 1 else None,
            "labels": labels,
            "score": scores[best],
        }


def with_outcome(
    answers: list[dict[str, Any]], outcome: Outcome, score_labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Add what only the combined answer has: abstention, and the spread of a regression."""
    if outcome.abstained is not None:
        for answer, flag in zip(answers, outcome.abstained.tolist(), strict=True):
            answer["abstained"] = flag
    for name, values in outcome.spread.items():
        for answer, row in zip(answers, numbers(values), strict=True):
            answer[name] = dict(zip(score_labels, row, strict=True))
    return answers
