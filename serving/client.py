"""TorchServe's inference API for ensembles."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from ..handlers.base.errors import RequestError, ServerError
from .transports import (
    Answer,
    Images,
    NoAnswerError,
    NoConnectionError,
    RestTransport,
    Transport,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8080"
"""Where TorchServe listens if nothing else is configured."""

DEFAULT_GRPC_ADDRESS = "127.0.0.1:7070"
"""The same for gRPC."""

# TorchServe's words for a model without workers, and for one whose queue is full.
_NOT_TAKEN = "has no worker to serve inference request"
_WORKER_ENDED = ("Worker died.", "Worker scaled down.")
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 2.0


SEQUENCE_OPTIONS = ("smooth", "frame_order", "stream", "frames")
"""Options about all samples of a request together, which must not be split over several."""


@dataclass(frozen=True)
class Prediction:
    """One sample's answer: the combined one, or one member's.

    Attributes:
        label: the label chosen; None where several or none are, or the policy abstained.
        labels: all labels chosen.
        score: the label's score; for presence that of the positive label.
        scores: by label, where they were asked for.
        values: by output, of a regression.
        members: each member's own answer.
        error: why there is no answer, for a sample that was skipped.
        raw: all that the server said of it.
    """

    label: str | None = None
    labels: tuple[str, ...] = ()
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    members: Mapping[str, Prediction] = field(default_factory=dict)
    error: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Prediction:
        """Read one element of ``predictions``."""
        members = content.get("members", {})
        return cls(
            label=content.get("label"),
            labels=tuple(content.get("labels", ())),
            score=content.get("score"),
            scores=content.get("scores", {}),
            values=content.get("values", {}),
            members={name: cls.from_json(answer) for name, answer in members.items()},
            error=content["error"]["message"] if "error" in content else None,
            raw=content,
        )


class InferenceClient:
    """Sends images and options, keeps its connections, and never waits without a limit.

    A prediction changes nothing in the server, so it is safe to repeat. It is sent again, after
    pauses of 0.1 s that double up to 2 s, where the server could not be reached or closed the
    connection, where no worker took it (503: the queue is full or no worker is ready; 507), and
    where the worker ended while it computed it (TorchServe's "Worker died.").

    Args:
        address: e.g. ``http://127.0.0.1:8080``; for gRPC ``127.0.0.1:7070``.
        transport: ``rest`` or ``grpc``; the answers are the same.
        token: the inference key, where token authorization is on.
        timeout: seconds for each request, with all that is sent again.
        retries: how often a request is sent again at most.
        attempt_timeout: seconds after which an attempt without an answer is given up and counts as
            failed. TorchServe never answers a request that a worker took in the moment in which it
            died. None: an attempt may take all of `timeout`, and is not repeated after it.
        diagnose: tells why a model (name, version) takes no request; TorchServe says "no worker"
            of a full queue too.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        transport: Literal["rest", "grpc"] = "rest",
        token: str | None = None,
        timeout: float = 60,
        retries: int = 4,
        attempt_timeout: float | None = None,
        diagnose: Callable[[str, str | None], str] | None = None,
    ) -> None:
        self._diagnose = diagnose or _unknown_reason
        self._timeout = timeout
        self._retries = retries
        self._attempt_timeout = attempt_timeout or timeout
        self._transport: Transport
        if transport == "grpc":
            # Importing grpc takes a tenth of a second.
            from .grpc_transport import GrpcTransport

            self._transport = GrpcTransport(address or DEFAULT_GRPC_ADDRESS, token=token)
        else:
            self._transport = RestTransport(address or DEFAULT_ADDRESS, token=token)

    @property
    def address(self) -> str:
        """Where requests go."""
        return self._transport.address

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def predict(
        self,
        name: str,
        images: Sequence[tuple[str, bytes]],
        *,
        version: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request.

        Args:
            name: the model.
            images: file name and encoded bytes of each; bundles of images are taken too.
            version: instead of the default version.
            options: e.g. ``{"policy": "any"}``.

        Returns:
            The answer, as the README shows it.

        Raises:
            RequestError: the server refuses the request (4xx), in its own words.
            ServerError: no answer, or a failure of the server (5xx).
        """
        answer = self._send(name, version, images, options or {})
        try:
            content: dict[str, Any] = json.loads(answer.body)
        except ValueError as error:
            if answer.status == 200:
                raise RequestError(
                    "the answer is not JSON; leave out the option response, or send the request "
                    "with a client of your own"
                ) from error
            content = {"message": answer.body[:300].decode(errors="replace")}
        if answer.status != 200:
            message = str(content.get("message", f"status {answer.status}"))
            if _NOT_TAKEN in message:
                message = self._diagnose(name, version)
            kind = RequestError if answer.status < 500 else ServerError
            refusal = kind(message)
            refusal.status = answer.status
            raise refusal
        return content

    def _send(
        self, name: str, version: str | None, images: Images, options: Mapping[str, str]
    ) -> Answer:
        """Send a request until it is answered, may not be repeated, or the time is over."""
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        for attempt in itertools.count():
            left = max(0.001, deadline - time.monotonic())
            failure: ServerError | None = None
            try:
                answer = self._transport.send(
                    name, version, images, options, min(left, self._attempt_timeout)
                )
            except (NoConnectionError, NoAnswerError) as error:
                failure = error
            else:
                if not _is_repeatable(answer):
                    return answer
            # Clients that failed together must not come back together.
            wait = pause * random.uniform(0.5, 1)
            if attempt == self._retries or time.monotonic() + wait >= deadline:
                break
            time.sleep(wait)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        if failure is not None:
            raise failure
        return answer

    def predict_all(
        self,
        name: str,
        images: Iterable[tuple[str, bytes]],
        *,
        version: str | None = None,
        options: Mapping[str, str] | None = None,
        per_request: int = 32,
        at_once: int = 4,
    ) -> Iterator[Prediction]:
        """Any number of images: one prediction for each, in order, as they come.

        Args:
            name: the model.
            images: read as they are needed, so that a generator of a million files is fine.
            version: instead of the default version.
            options: of every request. Options over a whole sequence (smooth, frame_order) would
                see one request at a time only.
            per_request: images in one request.
            at_once: requests on their way at the same time.

        Raises:
            RequestError: the server refuses a request; with ``on_error=skip`` an unreadable image
                is a prediction with an error instead.
            ServerError: no answer, or a failure of the server.
        """
        chosen = dict(options or {})
        waiting: deque[tuple[list[str], Future[dict[str, Any]]]] = deque()
        rest = iter(images)
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while True:
                    while len(waiting) < at_once and (
                        batch := list(itertools.islice(rest, per_request))
                    ):
                        future = pool.submit(
                            self.predict, name, batch, version=version, options=chosen
                        )
                        waiting.append(([file for file, _ in batch], future))
                    if not waiting:
                        return
                    files, first = waiting.popleft()
                    predictions = first.result()["predictions"]
                    yield from map(Prediction.from_json, with_names(predictions, files))
            finally:
                for _, future in waiting:
                    future.cancel()


def _unknown_reason(name: str, version: str | None) -> str:
    return (
        f"{name}{'' if version is None else f' {version}'} took no request: it has no worker, or "
        "its queue is full; `ts-ensemble status` tells which"
    )


def _is_repeatable(answer: Answer) -> bool:
    """Whether a request was refused for a reason that passes, and was not computed."""
    if answer.status in (503, 507):
        return True
    # TorchServe says so with 500, and with 413 or 507 where the worker was ended by kill -9.
    return answer.status >= 400 and any(text.encode() in answer.body for text in _WORKER_ENDED)


def with_names(predictions: list[dict[str, Any]], files: Sequence[str]) -> list[dict[str, Any]]:
    """Predictions with the names of their files, which forms do not carry to the worker.

    Where a file held several samples, the names that the server gave stay.
    """
    if len(predictions) != len(files):
        return predictions
    return [{**each, "sample": file} for each, file in zip(predictions, files, strict=True)]
