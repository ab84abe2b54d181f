"""How requests reach a server: REST here, gRPC in `grpc_transport`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..handlers.errors import ServerError
from .sessions import open_session

Images = Sequence[tuple[str, bytes]]
"""File name and encoded bytes of each image of one request."""


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes


class Transport(Protocol):
    """Sends one request; used by several threads at once."""

    address: str

    def send(
        self, name: str, version: str | None, images: Images, options: Mapping[str, str]
    ) -> Answer:
        """Send one request and wait for its answer.

        Raises:
            ServerError: no answer.
        """

    def close(self) -> None:
        """Close all connections."""


class RestTransport:
    """``POST /predictions/NAME[/VERSION]`` as one form, every image under the name ``file``.

    A prediction changes nothing in the server, so it may be sent again where the server never took
    it: after a failed connection, and after a 503 (no room in the queue, or no worker). After a
    timeout it is not: the first attempt may still be running.

    Args:
        address: e.g. ``http://127.0.0.1:8080``.
        token: the inference key, where token authorization is on.
        timeout: seconds for each request.
        retries: how often a request may be sent again.
    """

    def __init__(self, address: str, *, token: str | None, timeout: float, retries: int) -> None:
        self.address = address.rstrip("/")
        self._timeout = timeout
        self._token = token
        self._retry = Retry(
            total=retries,
            connect=retries,
            read=0,
            redirect=0,
            status=retries,
            status_forcelist=[503],
            allowed_methods=None,
            backoff_factor=0.1,
            raise_on_status=False,
        )
        self._sessions: list[requests.Session] = []
        self._own = threading.local()

    def send(
        self, name: str, version: str | None, images: Images, options: Mapping[str, str]
    ) -> Answer:
        """See `Transport.send`."""
        path = f"/predictions/{name}" if version is None else f"/predictions/{name}/{version}"
        fields = [("file", (file, data, "application/octet-stream")) for file, data in images]
        url = self.address + path
        try:
            answer = self._session().post(
                url, files=fields, data=dict(options), timeout=self._timeout
            )
        except requests.Timeout as error:
            raise no_answer(url, self._timeout) from error
        except requests.RequestException as error:
            raise no_server(url, error) from error
        return Answer(answer.status_code, answer.content)

    def close(self) -> None:
        """See `Transport.close`."""
        for session in self._sessions:
            session.close()

    def _session(self) -> requests.Session:
        """One for each thread: sessions are not made to be shared."""
        if not hasattr(self._own, "session"):
            session = open_session(self.address, self._token)
            session.mount("http://", HTTPAdapter(max_retries=self._retry))
            session.mount("https://", HTTPAdapter(max_retries=self._retry))
            self._own.session = session
            self._sessions.append(session)
        session_of_thread: requests.Session = self._own.session
        return session_of_thread


def no_answer(url: str, timeout: float) -> ServerError:
    """The error for a server that takes too long."""
    return ServerError(
        f"{url}: no answer within {timeout:g} s; see `ts-ensemble status`, or raise the timeout"
    )


def no_server(url: str, error: Exception) -> ServerError:
    """The error for a server that cannot be reached."""
    return ServerError(f"{url}: no server answers; start one with `ts-ensemble serve` ({error})")
