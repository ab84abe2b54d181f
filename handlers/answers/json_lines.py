"""JSON Lines: one line for each sample."""

from __future__ import annotations

import json

from ..decisions.result import Result
from .encoding import Response, compact
from .json_answers import predictions

JSON_LINES = "application/jsonl"


def write_json_lines(result: Result) -> Response:
    """JSON Lines: one line for each sample; model and policy stand in headers."""
    rows = predictions(result)
    body = b"".join(compact({"index": i, **row}) + b"\n" for i, row in enumerate(rows))
    headers = {"ensemble-policy": json.dumps(dict(result.policy))}
    headers |= {f"ensemble-{name}": str(value) for name, value in result.model.items() if value}
    return Response(body, content_type=JSON_LINES, headers=headers)
