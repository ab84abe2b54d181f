"""The states of a request on its way through a batch; each stage makes a new one from the last.

``RawRequest`` -> `Accepted` -> `Decoded` -> `Answered`, or `Refused` at any stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .answers.encoding import Response, encode_error
from .base.errors import EnsembleError
from .decisions.choosing import Choice
from .decisions.result import Result
from .decoding.batch import DecodedSamples
from .requests.parsing import ParsedRequest


@dataclass(frozen=True)
class Refused:
    """A request that is answered with an error."""

    response: Response


@dataclass(frozen=True)
class Accepted:
    """A request that was parsed and whose options are valid.

    Attributes:
        request: its samples and options.
        choice: the policy and the members that it asks for.
        accept: its Accept header; empty if it has none.
    """

    request: ParsedRequest
    choice: Choice
    accept: str

    def refused(
        self, error: EnsembleError, failed_samples: Sequence[EnsembleError] = ()
    ) -> Refused:
        """Refuse the request in the form of errors that its client understands.

        Args:
            error: gives status and message.
            failed_samples: errors of single samples, to be listed.
        """
        open_inference = self.request.infer is not None
        return Refused(encode_error(error, failed_samples, open_inference=open_inference))


@dataclass(frozen=True)
class Decoded:
    """A request whose readable samples are ready for the members."""

    accepted: Accepted
    samples: DecodedSamples


@dataclass(frozen=True)
class Answered:
    """A request whose result is known but not written yet."""

    accepted: Accepted
    result: Result
