"""Chooses the response format that a client asked for, and checks the size of its answer."""

from __future__ import annotations

from typing import Any

from ..base.errors import TooLargeError
from ..decisions.result import Result
from ..requests.open_inference import InferRequest
from ..requests.options import ResponseFormat
from . import flexserve, json_answers, json_lines, open_inference, tensors
from .answer_size import estimate_json_bytes, estimate_number_bytes
from .encoding import JSON, Response, encode

_BY_MEDIA_TYPE = {
    JSON: ResponseFormat.JSON,
    "*/*": ResponseFormat.JSON,
    json_lines.MEDIA_TYPE: ResponseFormat.LINES,
    "application/x-ndjson": ResponseFormat.LINES,
    "application/x-jsonlines": ResponseFormat.LINES,
    tensors.MEDIA_TYPE: ResponseFormat.TENSORS,
    "application/x-safetensors": ResponseFormat.TENSORS,
    "application/octet-stream": ResponseFormat.TENSORS,
}


def write(
    result: Result,
    *,
    accept: str = "",
    infer: InferRequest | None = None,
    predictions: list[dict[str, Any]] | None = None,
) -> Response:
    """Write a result in the format that the client asked for.

    Args:
        result: the result of one request.
        accept: the request's Accept header; the option ``response`` has precedence over it.
        infer: the client's Open Inference request, which is answered in that protocol.
        predictions: the result's `json_answers.predictions`, if they exist already.

    Raises:
        RequestError: the client asked for an output that does not exist.
    """
    if infer is not None:
        return open_inference.write(result, infer)
    match response_format(result, accept):
        case ResponseFormat.LINES:
            return json_lines.write(result)
        case ResponseFormat.FLEXSERVE:
            return flexserve.write(result)
        case ResponseFormat.FLEXSERVE_CLASSIFY:
            return flexserve.write_first(result)
        case ResponseFormat.TENSORS:
            return tensors.write(result)
        case _:
            return encode(json_answers.content(result, predictions))


def response_format(result: Result, accept: str) -> ResponseFormat:
    """Choose the format of the answer to a client that does not speak Open Inference.

    The option ``response`` decides. Without it, the first media type of the Accept header that
    stands for a format decides. Without that, the format is JSON.

    Args:
        result: the result of one request, with its options.
        accept: the request's Accept header; empty if it has none.
    """
    if result.options.response is not None:
        return result.options.response
    for choice in accept.split(","):
        media_type = choice.partition(";")[0].strip().lower()
        if media_type in _BY_MEDIA_TYPE:
            return _BY_MEDIA_TYPE[media_type]
    return ResponseFormat.JSON


def check_size(result: Result, max_bytes: int, *, infer: InferRequest | None = None) -> None:
    """Check the estimated size of an answer before it is written.

    Args:
        result: the result of one request.
        max_bytes: largest number of bytes that the answer may have.
        infer: the client's Open Inference request, if it speaks that protocol.

    Raises:
        TooLargeError: the estimate is larger than `max_bytes`.
    """
    numbers_only = infer is not None or result.options.response is ResponseFormat.TENSORS
    size = estimate_number_bytes(result) if numbers_only else estimate_json_bytes(result)
    if size > max_bytes:
        raise too_large(size, max_bytes)


def too_large(size: int, max_bytes: int) -> TooLargeError:
    """Make the error that refuses a request whose answer has too many bytes."""
    return TooLargeError(
        f"the answer would have some {size} bytes; the limit is {max_bytes} "
        "(limits.max_response_bytes in the spec): send fewer samples in one request, or ask for "
        "less (fields, include, top_k)"
    )
