"""Which response format a client wants, and writing the answer in it."""

from __future__ import annotations

from typing import Any

from ..base.errors import TooLargeError
from ..decisions.result import Result
from ..requests.open_inference import InferRequest
from ..requests.options import ResponseFormat
from . import json_answers
from .encoding import Response, encode
from .flexserve import write_flexserve
from .json_lines import JSON_LINES, write_json_lines
from .open_inference import write_open_inference
from .safetensors_answer import SAFETENSORS, write_safetensors

_BYTES_OF_A_NUMBER = 14
"""Bytes of a float32 written in JSON; as binary data it takes 4."""

_BY_ACCEPT = {
    JSON_LINES: ResponseFormat.LINES,
    "application/x-ndjson": ResponseFormat.LINES,
    "application/x-jsonlines": ResponseFormat.LINES,
    SAFETENSORS: ResponseFormat.TENSORS,
    "application/x-safetensors": ResponseFormat.TENSORS,
    "application/octet-stream": ResponseFormat.TENSORS,
}


def write(
    result: Result,
    *,
    accept: str = "",
    infer: InferRequest | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Response:
    """Write a result in the response format that the client asked for.

    Args:
        result: the result.
        accept: the request's Accept header; the option ``response`` comes before it.
        infer: the client's Open Inference request; its answer is written in that protocol.
        rows: the result's `predictions`, where they were made already.

    Raises:
        RequestError: an output that does not exist.
    """
    if infer is not None:
        return write_open_inference(result, infer)
    match response_format(result, accept):
        case ResponseFormat.LINES:
            return write_json_lines(result)
        case ResponseFormat.FLEXSERVE:
            return write_flexserve(result)
        case ResponseFormat.TENSORS:
            return write_safetensors(result)
        case _:
            return encode(json_answers.content(result, rows))


def check_size(result: Result, max_bytes: int, *, infer: InferRequest | None = None) -> None:
    """Check that an answer will not be too long, before it is made.

    Raises:
        TooLargeError: it would be.
    """
    numbers = len(result.samples) * len(result.score_labels) * (1 + len(result.member_names))
    compact_numbers = infer is not None or result.options.response is ResponseFormat.TENSORS
    size = numbers * _BYTES_OF_A_NUMBER if compact_numbers else json_answers.estimated_bytes(result)
    if size > max_bytes:
        raise too_long(size, max_bytes)


def too_long(size: int, max_bytes: int) -> TooLargeError:
    """The refusal of a request whose answer is too long."""
    return TooLargeError(
        f"the answer would have some {size} bytes; the limit is {max_bytes} "
        "(limits.max_response_bytes in the spec): send fewer samples in one request, or ask for "
        "less (fields, include, top_k)"
    )


def response_format(result: Result, accept: str) -> ResponseFormat:
    """The format of an answer: the option ``response``, else what the Accept header asks for."""
    return result.options.response or _accepted(accept)


def _accepted(accept: str) -> ResponseFormat:
    """The first format of an Accept header that this project writes; else JSON."""
    for choice in accept.split(","):
        name = choice.partition(";")[0].strip().lower()
        if name in ("application/json", "*/*"):
            return ResponseFormat.JSON
        if name in _BY_ACCEPT:
            return _BY_ACCEPT[name]
    return ResponseFormat.JSON
