"""Images that JSON carries as text: base64, alone or in a data URI."""

from __future__ import annotations

import base64
import binascii

_MAX_DATA_URI_PREFIX_CHARACTERS = 200
"""The data of a data URI begin within this many characters; a media type has some twenty."""


def decode_base64(text: str) -> bytes:
    """Decode base64, or a data URI (RFC 2397) that contains it.

    Raises:
        ValueError: the text is neither of them; the message says why.
    """
    if text.startswith("data:"):
        comma = text.find(",", 0, _MAX_DATA_URI_PREFIX_CHARACTERS)
        if comma < 0 or not text[:comma].endswith(";base64"):
            raise ValueError("the data URI must be data:TYPE;base64,DATA")
        text = text[comma + 1 :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not valid base64: {error}") from None
