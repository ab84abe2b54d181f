"""The response format ``lines``: JSON Lines."""

from __future__ import annotations

import json

from ..decisions.result import Result
from .encoding import Response, compact
from .json_answers import predictions

MEDIA_TYPE = "application/jsonl"


def write(result: Result) -> Response:
    """Write one line for each sample; headers name the model and the policy."""
    rows = predictions(result)
    body = b"".join(compact({"index": index, **row}) + b"\n" for index, row in enumerate(rows))
    headers = {"ensemble-policy": json.dumps(dict(result.policy))}
    headers |= {f"ensemble-{name}": str(value) for name, value in result.model.items() if value}
    return Response(body, content_type=MEDIA_TYPE, headers=headers)
