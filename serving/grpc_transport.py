"""Sends requests over TorchServe's gRPC inference service."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

import grpc

from .grpc_messages import message_classes, open_channel
from .transports import Answer, Images, no_answer, no_server

_SERVICE = "org.pytorch.serve.grpc.inference"


class GrpcTransport:
    """Sends each request as one ``Predictions`` call.

    The input of a call is a map, in which a name cannot be repeated, so several images are sent as
    one zip file. The answer is the same JSON as over REST. TorchServe drops the HTTP status of the
    answer, so the status is read from the body.

    Args:
        address: address of the inference service, e.g. ``127.0.0.1:7070``.
        token: the inference token; None if the server asks for none.
    """

    def __init__(self, address: str, *, token: str | None) -> None:
        self.address = address
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._request, response = _messages()
        self._channel = open_channel(address)
        self._predictions = self._channel.unary_unary(
            f"/{_SERVICE}.InferenceAPIsService/Predictions",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def send(
        self,
        name: str,
        version: str | None,
        images: Images,
        options: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        """Send one request, as described for `Transport.send`."""
        inputs = {option: value.encode() for option, value in options.items()}
        if len(images) == 1:
            inputs["file"] = images[0][1]
        elif images:
            inputs["file"] = _zip(images)
        request = self._request(model_name=name, model_version=version or "", input=inputs)
        try:
            body: bytes = self._predictions(
                request, timeout=timeout, metadata=self._metadata
            ).prediction
        except grpc.RpcError as error:
            return self._answer_of_error(error, timeout)
        return Answer(_status(body), body)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _answer_of_error(self, error: Any, timeout: float) -> Answer:
        """Turn a gRPC error, by which TorchServe itself refuses, into the answer of the REST API.

        Raises:
            NoConnectionError: no connection, or it was lost.
            NoAnswerError: no answer within `timeout` seconds.
        """
        code, details = error.code().name, str(error.details())
        if code == "DEADLINE_EXCEEDED":
            raise no_answer(self.address, timeout) from error
        # With this code and no text of TorchServe's, the connection failed or was lost.
        if code == "UNAVAILABLE" and not _is_from_torchserve(details):
            raise no_server(self.address, error) from error
        statuses = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401}
        statuses |= {"PERMISSION_DENIED": 403, "UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 413}
        status = statuses.get(code, 500)
        # TorchServe gives most refusals the code INTERNAL; only the text names its own exception.
        for exception, exact_status in (
            ("NotFoundException", 404),
            ("ServiceUnavailableException", 503),
        ):
            status = exact_status if exception in details else status
        body = {"code": status, "type": code, "message": details}
        return Answer(status, json.dumps(body).encode())


def _is_from_torchserve(details: str) -> bool:
    """Whether TorchServe wrote an error's text: it then names one of TorchServe's Java classes."""
    return "org.pytorch.serve" in details


def _status(body: bytes) -> int:
    """The status in the JSON body of a refusal; 200 for every other body."""
    if not body.startswith(b'{"code":'):
        return 200
    try:
        return int(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return 200


def _zip(images: Images) -> bytes:
    """Pack images into a zip file, in order; the index in each entry's name keeps names unique."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, data) in enumerate(images):
            archive.writestr(f"{index}-{name.rpartition('/')[2]}", data)
    return file.getvalue()


@cache
def _messages() -> tuple[Any, ...]:
    """The classes of ``Predictions``' request and response."""
    return message_classes(
        _SERVICE,
        {
            "PredictionsRequest": [
                (1, "model_name", "string"),
                (2, "model_version", "string"),
                (3, "input", "map"),
            ],
            "PredictionResponse": [(1, "prediction", "bytes")],
        },
    )
