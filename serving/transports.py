"""Sends requests to a server: the interface of a transport, and the one over REST.

The transport over gRPC is in `grpc_transport`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import requests

from ..handlers.base.errors import ServerError
from .sample_names import FIELD
from .sessions import open_session

Images = Sequence[tuple[str, bytes]]
"""File name and encoded bytes of each image of one request."""


@dataclass(frozen=True)
class Answer:
    """The HTTP status and the body with which a server answered."""

    status: int
    body: bytes


class NoConnectionError(ServerError):
    """No server was reached, or the server closed the connection before it answered."""


class NoAnswerError(ServerError):
    """A server did not answer in time; it may still carry out the request."""


class Transport(Protocol):
    """Sends single requests and never repeats one; several threads may use it at the same time.

    Attributes:
        address: address of the server.
    """

    address: str

    def send(
        self,
        name: str,
        version: str | None,
        images: Images,
        options: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        """Send one request and wait for its answer.

        Args:
            name: name of the model.
            version: version of the model; None for the default version.
            images: file name and encoded bytes of each image.
            options: options of the request, e.g. its policy.
            timeout: seconds.

        Raises:
            NoConnectionError: no connection was made, or it was lost.
            NoAnswerError: no answer within `timeout` seconds.
        """

    def close(self) -> None:
        """Close all connections."""


class RestTransport:
    """Sends each request as ``POST /predictions/NAME[/VERSION]``.

    The body is one form, in which every image is a part named ``file``.

    Args:
        address: URL of the inference API, e.g. ``http://127.0.0.1:8080``.
        token: the inference token; None if the server asks for none.
    """

    def __init__(self, address: str, *, token: str | None) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._sessions: list[requests.Session] = []
        self._thread_local = threading.local()

    def send(
        self,
        name: str,
        version: str | None,
        images: Images,
        options: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        """Send one request, as described for `Transport.send`."""
        path = f"/predictions/{name}" if version is None else f"/predictions/{name}/{version}"
        fields = [(FIELD, (file, data, "application/octet-stream")) for file, data in images]
        url = self.address + path
        try:
            answer = self._session().post(url, files=fields, data=dict(options), timeout=timeout)
        except requests.RequestException as error:
            raise explain_failure(url, error, timeout) from error
        return Answer(answer.status_code, answer.content)

    def close(self) -> None:
        """Close the connections of all threads."""
        for session in self._sessions:
            session.close()

    def _session(self) -> requests.Session:
        """The HTTP session of the calling thread; `requests` sessions are not thread-safe."""
        if not hasattr(self._thread_local, "session"):
            self._thread_local.session = open_session(self.address, self._token)
            self._sessions.append(self._thread_local.session)
        session: requests.Session = self._thread_local.session
        return session


def explain_failure(
    url: str, error: requests.RequestException, timeout: float
) -> NoAnswerError | NoConnectionError:
    """Tell a server that took too long from one that cannot be reached.

    Args:
        url: address of the request, for the message.
        error: what `requests` raised.
        timeout: seconds that the server had for its answer.
    """
    cause: BaseException | None = error
    while cause is not None:
        # A server that stops reading in the middle of an upload is a ConnectionError for requests;
        # that the time was over stands in the error below it.
        if isinstance(cause, requests.Timeout | TimeoutError):
            return no_answer(url, timeout)
        cause = cause.__cause__ or cause.__context__
    return no_server(url, error)


def no_answer(url: str, timeout: float) -> NoAnswerError:
    """The error to raise if a server does not answer within `timeout` seconds."""
    return NoAnswerError(
        f"{url}: the server did not answer within {timeout:g} s, the client's timeout; "
        "`ts-ensemble status` shows its workers and queues"
    )


def no_server(url: str, error: Exception) -> NoConnectionError:
    """The error to raise if a server cannot be reached, or its connection was lost."""
    return NoConnectionError(
        f"{url}: no server answers; start one with `ts-ensemble serve` ({error})"
    )
