"""Responses: bodies, their status, and errors as the JSON that a client gets."""

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

_MAX_MESSAGE = 2000
"""Characters of an error's message."""

_MAX_SAMPLES_LISTED = 8
"""Failed samples that a refusal lists one by one; the others it counts."""


@dataclass(frozen=True)
class Response:
    """The answer to one request. Header values are text, or TorchServe's worker would end."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def numbers(values: Tensor) -> Any:
    """Nested lists of the shortest decimals that read back as the same float32; None for NaN.

    Args:
        values: float32, any shape.
    """

    array = values.detach().cpu().float().numpy()
    decimals = map(float, array.ravel().astype(str).tolist())
    written = [number if isfinite(number) else None for number in decimals]
    return np.array(written, dtype=object).reshape(array.shape).tolist()


def compact(content: object) -> bytes:
    """Compact JSON in UTF-8; NaN is refused.

    Half a character, which JSON can spell (``\\ud800``) and UTF-8 cannot, comes back as it was
    spelt: a client's own text in an error message must not keep the message from being sent.
    """
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")


def encode(content: object, status: int = 200) -> Response:
    """A response of compact JSON."""
    return Response(compact(content), status)


def error_content(error: EnsembleError) -> dict[str, Any]:
    """``{"code", "type", "message"}``, and for a sample its name and position."""
    message = error.message
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}..."
    content: dict[str, Any] = {
        "code": error.status,
        "type": type(error).__name__,
        "message": message,
    }
    if isinstance(error, SampleError):
        content |= {"sample": error.sample, "index": error.index}
    return content


def encode_error(
    error: EnsembleError, samples: Sequence[EnsembleError] = (), *, open_inference: bool = False
) -> Response:
    """One request's refusal.

    Args:
        error: why.
        samples: every sample that failed, if samples did; the first few are listed.
        open_inference: add the key ``error``, in which clients of that protocol look for the text.
    """
    content = error_content(error)
    if samples:
        content["samples"] = [error_content(sample) for sample in samples[:_MAX_SAMPLES_LISTED]]
        if len(samples) > _MAX_SAMPLES_LISTED:
            content["more_samples"] = len(samples) - _MAX_SAMPLES_LISTED
    if open_inference:
        content["error"] = content["message"]
    return encode(content, error.status)
