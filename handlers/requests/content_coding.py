"""Undoes the Content-Encoding of a request (RFC 9110, section 8.4), since TorchServe does not."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

from ..base.errors import RequestError, UnsupportedError, reason
from ..base.quoting import shown
from .budget import RequestBudget
from .compression import GZIP, Unpacked
from .raw_request import BODY, Part, RawRequest


def decoded_parts(request: RawRequest, budget: RequestBudget) -> Sequence[Part]:
    """Return the parts of a request; a body that was sent in gzip is unpacked.

    Raises:
        UnsupportedError: the coding is not gzip, or it was applied to a form. TorchServe's frontend
            takes forms apart without undoing their coding.
        RequestError: the body is not gzip although its header says so, or it is damaged.
        TooLargeError: the body unpacks to more bytes than the budget has left.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return request.parts
    is_single_body = len(request.parts) == 1 and request.parts[0].name == BODY
    if coding not in ("gzip", "x-gzip") or not is_single_body:
        raise UnsupportedError(
            f"Content-Encoding: {shown(coding)} is not understood"
            + ("" if is_single_body else " for forms")
            + "; send the body as it is, or a single body (image, archive or JSON) with gzip"
        )
    (part,) = request.parts
    data = part.as_bytes()
    if not data.startswith(GZIP):
        raise RequestError(
            "the body is not in gzip, although its Content-Encoding says so: leave that header out"
        )
    try:
        content = Unpacked(data, "the body", budget).read(budget.unpacked_bytes_left + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise RequestError(f"the gzip body is damaged ({reason(error)}); send it again") from None
    return [dataclasses.replace(part, value=content)]
