"""Scores and decisions as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save

from ..decisions.result import Result
from .encoding import Response
from .tensor_columns import tensor_columns

SAFETENSORS = "application/vnd.safetensors"


def write_safetensors(result: Result) -> Response:
    """safetensors: rows in the request's order; NaN and False where there is no answer.

    Tensors: ``scores`` (N, C) float32, ``member_scores`` (M, N, C) float32, ``answered`` (N,) bool,
    and but for regression ``decisions`` (N, C) bool. The metadata tell members, labels, model and
    policy, each as JSON.
    """
    columns = tensor_columns(result)
    metadata: Mapping[str, object] = {
        "members": result.member_names,
        "labels": result.score_labels,
        "model": dict(result.model),
        "policy": dict(result.policy),
    }
    body = save(
        {name: value.contiguous() for name, value in columns.items()},
        metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    return Response(body, content_type=SAFETENSORS)
