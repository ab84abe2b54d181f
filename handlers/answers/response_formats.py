"""How a result is written: one small function for each form of answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..base.errors import RequestError, TooLargeError
from ..base.quoting import shown_names
from ..base.tasks import Task
from ..decisions.result import Group, Result
from ..policies.uncertainty import Uncertainty
from ..requests.open_inference import InferRequest, OutputTensor, encode_infer_response
from ..requests.options import AnswerField, Form
from ..requests.parsing import HEADER_LENGTH
from . import json_answers as answers
from .encoding import Response, compact, encode

_NUMBER = 14
"""Bytes of a float32 in JSON; as binary data it takes 4."""

LINES = "application/jsonl"
TENSORS = "application/vnd.safetensors"
_BY_ACCEPT = {
    LINES: Form.LINES,
    "application/x-ndjson": Form.LINES,
    "application/x-jsonlines": Form.LINES,
    TENSORS: Form.TENSORS,
    "application/x-safetensors": Form.TENSORS,
    "application/octet-stream": Form.TENSORS,
}


def write(
    result: Result,
    *,
    accept: str = "",
    infer: InferRequest | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Response:
    """The response in the form that the client asked for.

    Args:
        result: what is to be said.
        accept: the request's Accept header; the option ``response`` comes before it.
        infer: the client's Open Inference request; its answer has that protocol's form.
        rows: the result's `predictions`, if they are there already.

    Raises:
        RequestError: an output that does not exist.
    """
    if infer is not None:
        return open_inference(result, infer)
    match form_of(result, accept):
        case Form.LINES:
            return lines(result)
        case Form.FLEXSERVE:
            return flexserve(result)
        case Form.TENSORS:
            return tensors(result)
        case _:
            return encode(answers.content(result, rows))


def check_size(result: Result, max_bytes: int, *, infer: InferRequest | None = None) -> None:
    """Check that an answer will not be too long, before it is made.

    Raises:
        TooLargeError: it would be.
    """
    numbers = len(result.samples) * len(result.score_labels) * (1 + len(result.member_names))
    compact_numbers = infer is not None or result.options.response is Form.TENSORS
    size = numbers * _NUMBER if compact_numbers else answers.estimated_bytes(result)
    if size > max_bytes:
        raise too_long(size, max_bytes)


def too_long(size: int, max_bytes: int) -> TooLargeError:
    """The refusal of a request whose answer is too long."""
    return TooLargeError(
        f"the answer would have some {size} bytes; the limit is {max_bytes} "
        "(limits.max_response_bytes in the spec): send fewer samples in one request, or ask for "
        "less (fields, include, top_k)"
    )


def form_of(result: Result, accept: str) -> Form:
    """How the client wants its answer, unless it speaks Open Inference."""
    return result.options.response or _accepted(accept)


def _accepted(accept: str) -> Form:
    """The first form of an Accept header that there is; JSON if there is none."""
    for choice in accept.split(","):
        name = choice.partition(";")[0].strip().lower()
        if name in ("application/json", "*/*"):
            return Form.JSON
        if name in _BY_ACCEPT:
            return _BY_ACCEPT[name]
    return Form.JSON


def lines(result: Result) -> Response:
    """JSON Lines: one line for each sample; model and policy stand in headers."""
    rows = answers.predictions(result)
    body = b"".join(compact({"index": i, **row}) + b"\n" for i, row in enumerate(rows))
    headers = {"ensemble-policy": json.dumps(dict(result.policy))}
    headers |= {f"ensemble-{name}": str(value) for name, value in result.model.items() if value}
    return Response(body, content_type=LINES, headers=headers)


def flexserve(result: Result) -> Response:
    """FlexServe's answer: ``{member: [label, ...]}``, a label or null for each sample.

    Source: Verenich et al. 2020; several labels of one sample are a list.
    """
    written: dict[str, list[Any]] = {
        name: [None] * len(result.samples) for name in result.member_names
    }
    fields = frozenset({AnswerField.LABEL, AnswerField.LABELS, AnswerField.VALUES})
    for group in result.groups:
        ballot = group.ballot
        if ballot is None:
            continue
        votes = None if result.task is Task.REGRESSION else ballot.votes
        for position, name in enumerate(ballot.member_names):
            rows = answers.answers_of(
                result,
                ballot.scores[position],
                votes[position] if votes is not None else None,
                fields,
                None,
            )
            for index, row in zip(group.indices, rows, strict=True):
                written[name][index] = row.get("label") or row.get("labels") or row.get("values")
    return encode(written)


def tensors(result: Result) -> Response:
    """safetensors: rows in the request's order; NaN and False where there is no answer.

    Tensors: ``scores`` (N, C) float32, ``member_scores`` (M, N, C) float32, ``answered`` (N,) bool,
    and but for regression ``decisions`` (N, C) bool. The metadata tell members, labels, model and
    policy, each as JSON.
    """
    columns = _columns(result)
    named = {name: value for name, value in columns.items() if isinstance(value, Tensor)}
    metadata: Mapping[str, object] = {
        "members": result.member_names,
        "labels": result.score_labels,
        "model": dict(result.model),
        "policy": dict(result.policy),
    }
    body = save(
        {name: value.contiguous() for name, value in named.items()},
        metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    return Response(body, content_type=TENSORS)


def open_inference(result: Result, infer: InferRequest) -> Response:
    """Open Inference v2: the outputs that were asked for, or all of them.

    ``label`` (BYTES), ``score``, ``scores`` (FP32), ``decisions`` (BOOL), each member's
    ``NAME.label`` and ``NAME.scores``, the three measures of uncertainty (FP32), ``answered``
    (BOOL), and ``error`` (BYTES) for samples that were skipped.

    Raises:
        RequestError: an output that does not exist.
    """
    columns = _outputs(result)
    requested = {output.name: output.binary for output in infer.outputs or ()}
    unknown = [name for name in requested if name not in columns]
    if unknown:
        raise RequestError(
            f"output {shown_names(unknown)} does not exist; choose from {', '.join(columns)}"
        )
    chosen = requested or dict.fromkeys(columns, infer.binary_output)
    body, header_length = encode_infer_response(
        model_name=str(result.model["name"]),
        model_version=str(result.model["version"]),
        id=infer.id,
        parameters={"policy": str(result.policy["name"]), **_archive(result)},
        outputs=[_output(name, columns[name], binary) for name, binary in chosen.items()],
    )
    if header_length is None:
        return Response(body)
    return Response(
        body,
        content_type="application/octet-stream",
        headers={HEADER_LENGTH.title(): str(header_length)},
    )


def _archive(result: Result) -> dict[str, str]:
    archive = result.model.get("archive")
    return {"archive": archive} if archive else {}


def _output(name: str, column: Tensor | list[str], binary: bool) -> OutputTensor:
    if isinstance(column, list):
        data: np.ndarray[Any, Any] = np.array([text.encode() for text in column], dtype=object)
        return OutputTensor(name, "BYTES", (len(column),), data, binary)
    datatype = "BOOL" if column.dtype is torch.bool else "FP32"
    return OutputTensor(name, datatype, tuple(column.shape), column.numpy(), binary)


def _outputs(result: Result) -> dict[str, Tensor | list[str]]:
    columns = _columns(result)
    rows = answers.predictions(result)
    outputs: dict[str, Tensor | list[str]] = {}
    if result.task in (Task.CLASSIFICATION, Task.PRESENCE):
        outputs["label"] = [row.get("label") or "" for row in _all_fields(result)]
        outputs["score"] = torch.tensor(
            [row.get("score", float("nan")) for row in _all_fields(result)], dtype=torch.float32
        )
    outputs["scores"] = columns["scores"]
    if "decisions" in columns:
        outputs["decisions"] = columns["decisions"]
    for position, name in enumerate(result.member_names):
        outputs[f"{name}.scores"] = columns["member_scores"][position]
    outputs |= _uncertainty_outputs(result)
    outputs["answered"] = columns["answered"]
    if result.errors:
        outputs["error"] = [row.get("error", {}).get("message", "") for row in rows]
    return outputs


def _all_fields(result: Result) -> list[dict[str, Any]]:
    """Label and score of each sample, whatever fields the client narrowed to."""
    rows: list[dict[str, Any]] = [{} for _ in result.samples]
    fields = frozenset({AnswerField.LABEL, AnswerField.SCORE})
    for group in result.groups:
        combined = answers.answers_of(
            result, group.outcome.scores, group.outcome.decisions, fields, None
        )
        for row, index in enumerate(group.indices):
            abstained = group.outcome.abstained is not None and bool(group.outcome.abstained[row])
            rows[index] = combined[row] | ({"label": None} if abstained else {})
    return rows


def _uncertainty_outputs(result: Result) -> dict[str, Tensor]:
    if not result.uncertainties:
        return {}
    outputs = {}
    for name in Uncertainty.__dataclass_fields__:
        values = torch.full((len(result.samples),), float("nan"))
        for group, uncertainty in zip(result.groups, result.uncertainties, strict=True):
            values[list(group.indices)] = getattr(uncertainty, name)
        outputs[name] = values
    return outputs


def _columns(result: Result) -> dict[str, Tensor]:
    """Every group's rows, scattered to the request's order."""
    samples, labels = len(result.samples), len(result.score_labels)
    names = result.member_names
    scores = torch.full((samples, labels), float("nan"))
    member_scores = torch.full((len(names), samples, labels), float("nan"))
    decisions = torch.zeros((samples, labels), dtype=torch.bool)
    answered = torch.zeros(samples, dtype=torch.bool)
    for group in result.groups:
        rows = list(group.indices)
        scores[rows] = group.outcome.scores
        answered[rows] = True
        if group.outcome.decisions is not None:
            decisions[rows] = group.outcome.decisions
        _scatter_members(member_scores, names, group, rows)
    columns = {"scores": scores, "member_scores": member_scores, "answered": answered}
    return columns if result.task is Task.REGRESSION else columns | {"decisions": decisions}


def _scatter_members(
    member_scores: Tensor, names: tuple[str, ...], group: Group, rows: list[int]
) -> None:
    if group.ballot is not None:
        for position, name in enumerate(group.ballot.member_names):
            member_scores[names.index(name), rows] = group.ballot.scores[position]
