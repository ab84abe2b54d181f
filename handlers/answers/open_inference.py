"""Writes answers in the Open Inference Protocol v2."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import RequestError
from ..base.quoting import shown_names
from ..base.tasks import Task
from ..decisions.result import Result
from ..policies.uncertainty import Uncertainty
from ..requests.open_inference import InferRequest, OutputTensor, encode_infer_response
from ..requests.options import AnswerField
from ..requests.raw_request import HEADER_LENGTH
from .columns import result_columns
from .encoding import Response, error_content
from .label_rows import label_rows


def write(result: Result, infer: InferRequest) -> Response:
    """Write the outputs that the client asked for, or all if it named none.

    The outputs are ``label`` (BYTES), ``score`` and ``scores`` (FP32), ``decisions`` (BOOL),
    ``NAME.scores`` of each member (FP32), the measures of `Uncertainty` (FP32) if the client wants
    them, ``answered`` (BOOL), and ``error`` (BYTES) if samples were skipped.

    Args:
        result: the result of one request.
        infer: the request as the client sent it in the Open Inference Protocol.

    Raises:
        RequestError: the client asked for an output that does not exist.
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
        parameters={"policy": str(result.policy["name"]), **_archive_parameter(result)},
        outputs=[_output(name, columns[name], binary) for name, binary in chosen.items()],
    )
    if header_length is None:
        return Response(body)
    return Response(
        body,
        content_type="application/octet-stream",
        headers={HEADER_LENGTH.title(): str(header_length)},
    )


def _archive_parameter(result: Result) -> dict[str, str]:
    """Make the parameter with the digest of the archive; there is none without an archive."""
    archive = result.model.get("archive")
    return {"archive": archive} if archive else {}


def _output(name: str, column: Tensor | list[str], binary: bool) -> OutputTensor:
    """Make one output; text becomes BYTES."""
    if isinstance(column, list):
        data: np.ndarray[Any, Any] = np.array([text.encode() for text in column], dtype=object)
        return OutputTensor(name, "BYTES", (len(column),), data, binary)
    datatype = "BOOL" if column.dtype is torch.bool else "FP32"
    return OutputTensor(name, datatype, tuple(column.shape), column.numpy(), binary)


def _outputs(result: Result) -> dict[str, Tensor | list[str]]:
    """Make all outputs that the result has, by name."""
    columns = result_columns(result)
    outputs: dict[str, Tensor | list[str]] = {}
    if result.task in (Task.CLASSIFICATION, Task.PRESENCE):
        rows = _label_and_score_rows(result)
        outputs["label"] = [row.get("label") or "" for row in rows]
        outputs["score"] = torch.tensor(
            [row.get("score", float("nan")) for row in rows],
            dtype=torch.float32,
        )
    outputs["scores"] = columns["scores"]
    if "decisions" in columns:
        outputs["decisions"] = columns["decisions"]
    for position, name in enumerate(result.member_names):
        outputs[f"{name}.scores"] = columns["member_scores"][position]
    outputs |= _uncertainty_outputs(result)
    outputs["answered"] = columns["answered"]
    if result.errors:
        outputs["error"] = [
            error_content(result.errors[index])["message"] if index in result.errors else ""
            for index in range(len(result.samples))
        ]
    return outputs


def _label_and_score_rows(result: Result) -> list[dict[str, Any]]:
    """Collect label and score of each sample, whichever fields the client chose."""
    rows: list[dict[str, Any]] = [{} for _ in result.samples]
    fields = frozenset({AnswerField.LABEL, AnswerField.SCORE})
    for group in result.groups:
        combined = label_rows(result, group.outcome.scores, group.outcome.decisions, fields, None)
        for row, index in enumerate(group.indices):
            abstained = group.outcome.abstained is not None and bool(group.outcome.abstained[row])
            rows[index] = combined[row] | ({"label": None} if abstained else {})
    return rows


def _uncertainty_outputs(result: Result) -> dict[str, Tensor]:
    """Make one output (N,) for each measure of uncertainty; NaN for samples without an answer."""
    if not result.uncertainties:
        return {}
    outputs = {}
    for name in Uncertainty.__dataclass_fields__:
        values = torch.full((len(result.samples),), float("nan"))
        for group, uncertainty in zip(result.groups, result.uncertainties, strict=True):
            values[list(group.indices)] = getattr(uncertainty, name)
        outputs[name] = values
    return outputs
