"""Parses JSON from clients, after counting how many Python objects it would become."""

from __future__ import annotations

import json
from typing import Any

from ..base.errors import RequestError, TooLargeError

_VALUE_DELIMITERS = (b",", b"[", b"{", b":")
"""Before each value of a document there is one of these, so their number bounds that of the values.

Delimiters inside texts are counted as well.
"""


def parse_json(text: bytes | bytearray | str, max_values: int) -> Any:
    """Parse a document that does not have too many values.

    Args:
        text: the document; bytes are UTF-8.
        max_values: limit on numbers, texts, lists and objects together. Python takes 24 to 64 bytes
            of memory for each.

    Raises:
        TooLargeError: the document has more values.
        RequestError: the document is not JSON, or too deeply nested for Python's parser.
    """
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(encoded.count(delimiter) for delimiter in _VALUE_DELIMITERS) > max_values:
        raise TooLargeError(
            f"the JSON holds more than {max_values} values (limits.max_json_values in the spec): "
            "send tensors as .npy, as safetensors, or as binary data of the Open Inference "
            "Protocol, or split the request"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
