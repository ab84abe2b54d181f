"""The response format ``tensors``: a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save

from ..decisions.result import Result
from .columns import result_columns
from .encoding import Response

MEDIA_TYPE = "application/vnd.safetensors"


def write(result: Result) -> Response:
    """Write the tensors of `result_columns` in the order of the request.

    The metadata hold members, labels, model and policy, each as JSON.
    """
    metadata: Mapping[str, object] = {
        "members": result.member_names,
        "labels": result.score_labels,
        "model": dict(result.model),
        "policy": dict(result.policy),
    }
    body = save(
        {name: value.contiguous() for name, value in result_columns(result).items()},
        metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    return Response(body, content_type=MEDIA_TYPE)
