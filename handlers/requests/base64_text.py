"""Images that JSON carries as text: base64, alone or in a data URI."""

from __future__ import annotations

import base64
import binascii

_MAX_PREFIX = 200
"""Characters of a data URI before its data; media types have a tenth of that."""


def decoded(text: str) -> bytes:
    """The bytes of a base64 text, or of a data URI (RFC 2397) that holds one.

    Raises:
        ValueError: says what is wrong with it.
    """
    if text.startswith("data:"):
        comma = text.find(",", 0, _MAX_PREFIX)
        if comma < 0 or not text[:comma].endswith(";base64"):
            raise ValueError("the data URI must be data:TYPE;base64,DATA")
        text = text[comma + 1 :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not valid base64: {error}") from None
