"""A client of TorchServe's inference API, for models that answer as ensembles do."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from ..handlers.base.errors import RequestError, ServerError
from .sample_names import in_batches, with_names
from .transports import (
    Answer,
    Images,
    NoAnswerError,
    NoConnectionError,
    RestTransport,
    Transport,
    no_answer,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8080"
"""Where TorchServe's inference API listens over HTTP if nothing else is configured."""

DEFAULT_GRPC_ADDRESS = "127.0.0.1:7070"
"""Where TorchServe's inference API listens over gRPC if nothing else is configured."""

_NO_WORKER = "has no worker to serve inference request"
"""TorchServe's message both for a model without workers and for one whose queue is full."""

_WORKER_ENDED = ("Worker died.", "Worker scaled down.")
"""TorchServe's messages for a request whose worker ended while it computed the answer."""

_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 2.0

_UNREADABLE_SAMPLE = re.compile(r"sample \d+( \([^)]*\))?")
"""How the server's message about one sample begins."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one sample: the ensemble's, or one member's.

    Attributes:
        label: the chosen label; None if the task can choose several, or the policy abstained.
        labels: all chosen labels.
        score: the chosen label's score; for the task presence, the positive label's.
        scores: label -> score, if the request asked for scores.
        values: output -> value, for the task regression.
        members: member -> its own answer.
        error: why the sample has no answer; None if it has one.
        raw: the JSON object that all of this was read from.
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
    """Sends images and options to a model, and returns its predictions.

    A client keeps its connections open, and every request has a time limit. A prediction changes
    nothing in the server, so it is safe to send it again. The client does so in three cases: the
    server could not be reached or closed the connection; no worker took the request (503: the
    queue is full or no worker is ready; 507); or the worker ended while it computed the answer
    (TorchServe's "Worker died."). It pauses for 0.1 s before the second attempt, and twice as long
    before each further one, but never longer than 2 s.

    Args:
        address: e.g. ``http://127.0.0.1:8080``; for gRPC ``127.0.0.1:7070``.
        transport: ``rest`` or ``grpc``; both give the same answers.
        token: the inference token, if the server asks for one.
        timeout: seconds for each request, all its attempts and pauses included.
        retries: largest number of further attempts after the first one.
        attempt_timeout: seconds after which an attempt without an answer counts as failed.
            TorchServe never answers a request that a worker took at the moment of its death. None:
            an attempt may take all of `timeout`, so that no other follows it.
        diagnose: function of a model's name and version (None: the default version) that returns
            why TorchServe refused a request for it with 404, or with the message "no worker",
            which it also uses when a queue is full.
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
        self._diagnose = diagnose
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
        """The address that requests are sent to."""
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
        """Send images to a model in one request, and return its answer.

        Args:
            name: name of the model.
            images: file name and contents of each image, or of each bundle of images.
            version: version of the model; None: the default version.
            options: options of the request, e.g. ``{"policy": "any"}``.

        Returns:
            The JSON object of the answer, as docs/requests.md describes it.

        Raises:
            RequestError: the server refuses the request (4xx).
            ServerError: the server does not answer, or fails (5xx).
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
            kind = RequestError if answer.status < 500 else ServerError
            refusal = kind(self._explained(answer.status, message, name, version))
            refusal.status = answer.status
            raise refusal
        return content

    def _explained(self, status: int, message: str, name: str, version: str | None) -> str:
        """Return the reason for a refusal: the server's own message, or a more helpful one."""
        is_without_worker = _NO_WORKER in message
        if self._diagnose is not None and (status == 404 or is_without_worker):
            return self._diagnose(name, version)
        if is_without_worker:
            model = name if version is None else f"{name} {version}"
            return (
                f"no worker took the request for {model}: the model has no worker, or its queue "
                "is full; `ts-ensemble status` shows which"
            )
        if status == 404:
            return f"{message}; `ts-ensemble status` lists the registered models"
        return message

    def _send(
        self, name: str, version: str | None, images: Images, options: Mapping[str, str]
    ) -> Answer:
        """Send a request until it is answered, must not be sent again, or its time is over."""
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        for attempt in itertools.count():
            seconds_left = max(0.001, deadline - time.monotonic())
            failure: ServerError | None = None
            try:
                answer = self._transport.send(
                    name, version, images, options, min(seconds_left, self._attempt_timeout)
                )
            except (NoConnectionError, NoAnswerError) as error:
                failure = error
            else:
                if not _is_repeatable(answer):
                    return answer
            # The pauses are random, so that clients that failed together return one by one.
            jittered_pause = pause * random.uniform(0.5, 1)
            if attempt == self._retries or time.monotonic() + jittered_pause >= deadline:
                break
            time.sleep(jittered_pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        if isinstance(failure, NoAnswerError):
            # The last attempt had only the seconds that earlier ones left.
            raise no_answer(self.address, self._attempt_timeout) from failure
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
        """Predict any number of images, in several requests that are sent side by side.

        Args:
            name: name of the model.
            images: file name and contents of each image. They are read as they are needed, so that
                a generator of a million files is fine.
            version: version of the model; None: the default version.
            options: options of every request. Options that concern a whole sequence (smooth,
                frame_order, stream, frames) see the images of one request only.
            per_request: largest number of images in one request.
            at_once: number of requests that wait for their answers at the same time.

        Yields:
            One prediction for each image, in the images' order.

        Raises:
            RequestError: the server refuses a request. With the option ``on_error=skip`` an
                unreadable image gives a prediction with an error instead.
            ServerError: the server does not answer, or fails.
        """
        request_options = dict(options or {})
        batches = in_batches(images, per_request, request_options)
        requests_in_flight: deque[tuple[Images, Future[dict[str, Any]]]] = deque()
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while True:
                    while len(requests_in_flight) < at_once and (batch := next(batches, None)):
                        future = pool.submit(
                            self.predict, name, batch, version=version, options=request_options
                        )
                        requests_in_flight.append((batch, future))
                    if not requests_in_flight:
                        return
                    sent, first = requests_in_flight.popleft()
                    try:
                        predictions = first.result()["predictions"]
                    except RequestError as error:
                        predictions = self._skipped(
                            name, sent, error, version=version, options=request_options
                        )
                    files = [file for file, _ in sent]
                    yield from map(Prediction.from_json, with_names(predictions, files))
            finally:
                for _, future in requests_in_flight:
                    future.cancel()

    def _skipped(
        self,
        name: str,
        batch: Images,
        refusal: RequestError,
        *,
        version: str | None,
        options: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """Make the predictions of a request in which no image can be read.

        The server refuses such a request also with ``on_error=skip``. Which images share a request
        is the client's choice here, so each of them gets its own error.

        Raises:
            RequestError: the refusal has another reason, or unreadable images are not skipped.
        """
        unreadable = _UNREADABLE_SAMPLE.match(str(refusal))
        if options.get("on_error") != "skip" or unreadable is None:
            raise refusal
        if len(batch) == 1:
            ((file, _),) = batch
            problem = str(refusal)[unreadable.end() :]
            return [{"sample": file, "error": {"sample": file, "message": f"{file}{problem}"}}]
        predictions = []
        for image in batch:
            try:
                answer = self.predict(name, [image], version=version, options=options)
                predictions += answer["predictions"]
            except RequestError as error:
                predictions += self._skipped(name, [image], error, version=version, options=options)
        return predictions


def _is_repeatable(answer: Answer) -> bool:
    """Whether the server refused a request for a reason that may have passed a moment later."""
    if answer.status in (503, 507):
        return True
    # TorchServe sends these messages with 500; with 413 or 507 if the worker was ended by kill -9.
    return answer.status >= 400 and any(text.encode() in answer.body for text in _WORKER_ENDED)
