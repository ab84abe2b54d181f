"""Makes a GPU compute in full float32 while members are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Let a GPU compute float32 convolutions in float32, within a block or a decorated function.

    Otherwise torch computes them in TensorFloat-32, with 10 bits of mantissa. Two right ways to
    compute a member would then differ by more than what counts as rounding in float32.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    precision = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = precision
