"""How requests reach a server: REST here, gRPC in `grpc_transport`."""

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
    """What a server said."""

    status: int
    body: bytes


class NoConnectionError(ServerError):
    """No server was reached, or it closed the connection before it answered."""


class NoAnswerError(ServerError):
    """A server did not answer in time; it may still do what it was asked."""


class Transport(Protocol):
    """Sends one request, once; used by several threads at once."""

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

        Raises:
            NoConnectionError: no connection, or it was lost.
            NoAnswerError: no answer within `timeout` seconds.
        """

    def close(self) -> None:
        """Close all connections."""


class RestTransport:
    """``POST /predictions/NAME[/VERSION]`` as one form, every image in a part named ``file``.

    Args:
        address: e.g. ``http://127.0.0.1:8080``.
        token: the inference key, where token authorization is on.
    """

    def __init__(self, address: str, *, token: str | None) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._sessions: list[requests.Session] = []
        self._own = threading.local()

    def send(
        self,
        name: str,
        version: str | None,
        images: Images,
        options: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        """See `Transport.send`."""
        path = f"/predictions/{name}" if version is None else f"/predictions/{name}/{version}"
        fields = [(FIELD, (file, data, "application/octet-stream")) for file, data in images]
        url = self.address + path
        try:
            answer = self._session().post(url, files=fields, data=dict(options), timeout=timeout)
        except requests.RequestException as error:
            raise explain_failure(url, error, timeout) from error
        return Answer(answer.status_code, answer.content)

    def close(self) -> None:
        """See `Transport.close`."""
        for session in self._sessions:
            session.close()

    def _session(self) -> requests.Session:
        """One for each thread: sessions are not made to be shared."""
        if not hasattr(self._own, "session"):
            session = open_session(self.address, self._token)
            self._own.session = session
            self._sessions.append(session)
        session_of_thread: requests.Session = self._own.session
        return session_of_thread


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
    """Make the error for a server that did not answer in time."""
    return NoAnswerError(
        f"{url}: the server did not answer within {timeout:g} s, the client's timeout; "
        "`ts-ensemble status` shows its workers and queues"
    )


def no_server(url: str, error: Exception) -> NoConnectionError:
    """Make the error for a server that cannot be reached."""
    return NoConnectionError(
        f"{url}: no server answers; start one with `ts-ensemble serve` ({error})"
    )
