"""JSON from clients, whose size is known before Python makes objects of it."""

from __future__ import annotations

import json
from typing import Any

from ..base.errors import RequestError, TooLargeError

_STARTS = (b",", b"[", b"{", b":")
"""Each value of a document stands behind one of these; those within texts are counted too."""


def parse_json(text: bytes | bytearray | str, max_values: int) -> Any:
    """Parse a document.

    Args:
        text: in UTF-8, if it is bytes.
        max_values: most numbers, texts, lists and objects; Python takes 24 to 64 bytes for each.

    Raises:
        TooLargeError: there are more.
        RequestError: it is not JSON, or nested so deeply that Python cannot read it.
    """
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(encoded.count(start) for start in _STARTS) > max_values:
        raise TooLargeError(
            f"the JSON holds more than {max_values} values (limits.max_json_values in the spec): "
            "send tensors as .npy, as safetensors, or as binary data of the Open Inference "
            "Protocol, or split the request"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
