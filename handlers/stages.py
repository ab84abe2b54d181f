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
    """A request that is answered with an error.

    Attributes:
        response: the response that carries the error.
    """

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
        """Refuse the request with an error in the protocol that its client speaks.

        Args:
            error: why the request is refused; it determines the status.
            failed_samples: errors of single samples, which the response lists.
        """
        open_inference = self.request.infer is not None
        return Refused(encode_error(error, failed_samples, open_inference=open_inference))


@dataclass(frozen=True)
class Decoded:
    """A request whose readable samples are ready for the members.

    Attributes:
        accepted: the request as it was parsed.
        samples: its samples after decoding.
    """

    accepted: Accepted
    samples: DecodedSamples


@dataclass(frozen=True)
class Answered:
    """A request whose result is computed but not yet written as a response.

    Attributes:
        accepted: the request as it was parsed.
        result: everything that the answer may contain.
    """

    accepted: Accepted
    result: Result
