"""Reads the JSON document of KServe v1 and TensorFlow Serving.

The document is ``{"instances": [...], "parameters": {...}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import RequestError
from ..base.quoting import shown_names
from .base64_text import decode_base64
from .bundles import Item, Unreadable

_KEYS = frozenset({"instances", "parameters", "signature_name"})


def instance_parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request, which stand in ``parameters``.

    Raises:
        RequestError: the document has a key that the protocols do not have, or its parameters are
            not an object.
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
    """Read one element of ``instances``: an image in base64, or a preprocessed input as numbers.

    Args:
        value: the element: base64, a data URI, nested lists of numbers (C, H, W), or an object with
            one of these under any single key, such as TensorFlow Serving's
            ``{"image": {"b64": "..."}}``.
        index: position of the element in the list.

    Returns:
        The sample; an element that cannot be read says so in the sample's data.
    """
    name = f"instances[{index}]"
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, list):
        return Item(name, _preprocessed_input(value))
    problem = 'must be {"b64": "<base64 image>"} or nested numbers (channels, height, width)'
    if isinstance(value, str):
        try:
            return Item(name, decode_base64(value))
        except ValueError as error:
            problem = str(error)
    return Item(name, Unreadable(problem))


def _preprocessed_input(value: list[Any]) -> Tensor | Unreadable:
    """Turn nested lists of numbers into float32 (C, H, W)."""
    try:
        array = np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return Unreadable("nested lists must be rectangular and contain nothing but numbers")
    if array.ndim != 3:
        return Unreadable(f"nested numbers of shape {array.shape}; send (channels, height, width)")
    return torch.from_numpy(array)
