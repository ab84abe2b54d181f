"""KServe v1 and TensorFlow Serving: ``{"instances": [...], "parameters": {...}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import RequestError
from ..base.quoting import shown_names
from .base64_text import decoded
from .bundles import Item, Unreadable

_KEYS = frozenset({"instances", "parameters", "signature_name"})


def instance_parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a request.

    Raises:
        RequestError: another key than the protocols', or parameters that are no object.
    """
    unknown = sorted(set(document) - _KEYS)
    if unknown:
        raise RequestError(
            f'unknown key {shown_names(unknown)} beside "instances"; options go into "parameters"'
        )
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError('"parameters" must be a JSON object of options')
    return parameters


def instance(value: Any, index: int) -> Item:
    """One of ``instances``: base64 of an image, or nested numbers that a member takes as they are.

    TF Serving's named inputs (``{"image": {"b64": "..."}}``) are seen through.
    """
    name = f"instances[{index}]"
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, list):
        return Item(name, _numbers(value))
    reason = 'must be {"b64": "<base64 image>"} or nested numbers (channels, height, width)'
    if isinstance(value, str):
        try:
            return Item(name, decoded(value))
        except ValueError as error:
            reason = str(error)
    return Item(name, Unreadable(reason))


def _numbers(value: list[Any]) -> Tensor | Unreadable:
    try:
        array = np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return Unreadable("nested numbers must be rectangular and numbers alone")
    if array.ndim != 3:
        return Unreadable(f"nested numbers of shape {array.shape}; send (channels, height, width)")
    return torch.from_numpy(array)
