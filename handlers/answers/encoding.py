"""Encodes JSON bodies, numbers and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from ..base.errors import EnsembleError, SampleError

JSON = "application/json"

_MAX_MESSAGE_CHARACTERS = 2000
"""Longer error messages are cut off."""

_MAX_SAMPLES_LISTED = 8
"""A refusal lists this many failed samples one by one, and gives the number of the others."""


@dataclass(frozen=True)
class Response:
    """The response to one request: an answer, or the error that refuses it.

    Attributes:
        body: the encoded body.
        status: HTTP status.
        content_type: media type of the body.
        headers: value of each further header by its name. A value that is not text would end
            TorchServe's worker.
        error: name of the error's class; empty if this is no refusal.
    """

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


def to_json_numbers(values: Tensor) -> Any:
    """Convert float32 to nested lists of the shortest decimals that read back as the same numbers.

    NaN and infinity become None, because JSON has neither.

    Args:
        values: float32, any shape.
    """
    array = values.detach().cpu().float().numpy()
    decimals = map(float, array.ravel().astype(str).tolist())
    finite = [number if isfinite(number) else None for number in decimals]
    return np.array(finite, dtype=object).reshape(array.shape).tolist()


def compact(content: object) -> bytes:
    """Encode JSON in UTF-8 without spaces.

    A client's JSON can contain half a character (``\\ud800``), which UTF-8 cannot encode. It
    is written as this escape, so that an error message that quotes a client can always be sent.

    Raises:
        ValueError: the content has NaN or infinity, which JSON does not have.
    """
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")


def encode(content: object, status: int = 200) -> Response:
    """Make a response from JSON content."""
    return Response(compact(content), status)


def error_content(error: EnsembleError) -> dict[str, Any]:
    """Make the JSON of an error: code, type and message, and the sample that it concerns."""
    message = error.message
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        message = f"{message[:_MAX_MESSAGE_CHARACTERS]}..."
    content: dict[str, Any] = {
        "code": error.status,
        "type": type(error).__name__,
        "message": message,
    }
    if isinstance(error, SampleError):
        content |= {"sample": error.sample, "index": error.index}
    return content


def encode_error(
    error: EnsembleError,
    sample_errors: Sequence[EnsembleError] = (),
    *,
    open_inference: bool = False,
) -> Response:
    """Make the response that refuses one request.

    Args:
        error: why the request is refused; it determines the status.
        sample_errors: errors of all samples that failed; the first few are listed.
        open_inference: add the key ``error``, in which clients of the Open Inference Protocol read
            the message.
    """
    content = error_content(error)
    if sample_errors:
        listed = sample_errors[:_MAX_SAMPLES_LISTED]
        content["samples"] = [error_content(sample_error) for sample_error in listed]
        if len(sample_errors) > _MAX_SAMPLES_LISTED:
            content["more_samples"] = len(sample_errors) - _MAX_SAMPLES_LISTED
    if open_inference:
        content["error"] = content["message"]
    return Response(compact(content), error.status, error=content["type"])
