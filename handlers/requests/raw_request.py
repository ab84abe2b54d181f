"""A request as it reaches the worker, and the limits that hold before anything in it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..base.errors import RequestError, TooLargeError
from ..base.quoting import MAX_NAME_CHARACTERS, is_text, shown
from ..spec import Limits
from .options import OPTION_NAMES

BODY = "body"
"""The name that TorchServe gives to a body that is not a form."""

HEADER_LENGTH = "inference-header-content-length"
"""Header of Open Inference requests with binary tensors: length of the JSON before them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a request.

    Attributes:
        name: name of the form field, or `BODY`. TorchServe's frontend drops file names.
        content_type: the media type that the client declared; empty in gRPC, and for a form field
            that is not a file.
        value: the content as bytes, or as the text or JSON value into which TorchServe's own reader
            decodes some parts.
    """

    name: str
    content_type: str
    value: Any

    def as_bytes(self) -> bytes:
        """Return the content as bytes; text is encoded in UTF-8."""
        if isinstance(self.value, bytes | bytearray):
            return bytes(self.value)
        return str(self.value).encode("utf-8", "surrogatepass")


@dataclasses.dataclass(frozen=True)
class RawRequest:
    """One request before it is parsed.

    Attributes:
        parts: the parts in the order in which they were sent.
        headers: value of each header by its name in lower case; empty in gRPC.
        id: identifier that TorchServe gave to the request; empty outside of TorchServe.
    """

    parts: Sequence[Part]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    id: str = ""


def lower_case(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Put header names into lower case: HTTP ignores their case, and TorchServe keeps it."""
    return {name.lower(): value for name, value in headers}


def max_parts(limits: Limits) -> int:
    """Return the largest number of parts of one request: all samples, and each option twice."""
    return limits.max_samples + 2 * len(OPTION_NAMES)


def check_size(parts: Sequence[Part], limits: Limits) -> None:
    """Check the number of bytes and parts of a request, and the names of its parts.

    Raises:
        TooLargeError: the request has more bytes or parts than the limits allow.
        RequestError: the name of a form field is too long or is not Unicode text.
    """
    size = sum(len(part.value) for part in parts if isinstance(part.value, bytes | bytearray | str))
    if size > limits.max_request_bytes:
        raise TooLargeError(
            f"the request has {size} bytes; the limit is {limits.max_request_bytes} "
            "(limits.max_request_bytes in the spec): split the request"
        )
    max_count = max_parts(limits)
    if len(parts) > max_count:
        raise TooLargeError(
            f"the request has more than {max_count} parts, which is more than "
            f"{limits.max_samples} samples (limits.max_samples in the spec) and all options need: "
            "split the request"
        )
    for part in parts:
        if len(part.name) > MAX_NAME_CHARACTERS or not is_text(part.name):
            raise RequestError(
                f"form field {shown(part.name)}: a name must be Unicode text of at most "
                f"{MAX_NAME_CHARACTERS} characters, and this one has {len(part.name)}"
            )
