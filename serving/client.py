"""TorchServe's inference API for ensembles."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from ..handlers.errors import RequestError, ServerError
from .grpc_transport import GrpcTransport
from .transports import RestTransport, Transport

DEFAULT_ADDRESS = "http://127.0.0.1:8080"
"""Where TorchServe listens if nothing else is configured."""

DEFAULT_GRPC_ADDRESS = "127.0.0.1:7070"
"""The same for gRPC."""


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

    Args:
        address: e.g. ``http://127.0.0.1:8080``; for gRPC ``127.0.0.1:7070``.
        transport: ``rest`` or ``grpc`` (the extra ``[grpc]``); the answers are the same.
        token: the inference key, where token authorization is on.
        timeout: seconds for each request.
        retries: how often a request that the server never took is sent again (REST).

    Raises:
        ServerError: gRPC is asked for and not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        transport: Literal["rest", "grpc"] = "rest",
        token: str | None = None,
        timeout: float = 60,
        retries: int = 3,
    ) -> None:
        self._transport: Transport
        if transport == "grpc":
            self._transport = GrpcTransport(
                address or DEFAULT_GRPC_ADDRESS, token=token, timeout=timeout
            )
        else:
            self._transport = RestTransport(
                address or DEFAULT_ADDRESS, token=token, timeout=timeout, retries=retries
            )

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
        answer = self._transport.send(name, version, images, options or {})
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
            kind = RequestError if answer.status < 500 else ServerError
            refusal = kind(str(content.get("message", f"status {answer.status}")))
            refusal.status = answer.status
            raise refusal
        return content

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


def with_names(predictions: list[dict[str, Any]], files: Sequence[str]) -> list[dict[str, Any]]:
    """Predictions with the names of their files, which forms do not carry to the worker.

    Where a file held several samples, the names that the server gave stay.
    """
    if len(predictions) != len(files):
        return predictions
    return [{**each, "sample": file} for each, file in zip(predictions, files, strict=True)]
