"""TorchServe's gRPC inference service, from the extra ``[grpc]``.

The messages are described here and not generated: they are few, and generated code is bound to one
version of protobuf. Field numbers are those of TorchServe 0.12.0's ``inference.proto``.
"""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..handlers.errors import ServerError
from .sessions import is_this_machine
from .transports import Answer, Images, no_answer, no_server

_SERVICE = "org.pytorch.serve.grpc.inference"
_LARGEST_MESSAGE = 2**31 - 1
# Sent again only where the server never took it, as over REST.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": f"{_SERVICE}.InferenceAPIsService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class GrpcTransport:
    """``Predictions`` of TorchServe's inference service.

    A gRPC input is a map, in which names cannot repeat, so several images go as one zip file. The
    answer is the same JSON as over REST; TorchServe drops its status, which stands in its body too.

    Args:
        address: e.g. ``127.0.0.1:7070``.
        token: the inference key, where token authorization is on.
        timeout: seconds for each request.

    Raises:
        ServerError: grpcio is not installed.
    """

    def __init__(self, address: str, *, token: str | None, timeout: float) -> None:
        grpc = _import_grpc()
        self.address = address
        self._timeout = timeout
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._request, response = _messages()
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", _LARGEST_MESSAGE),
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.service_config", json.dumps(_RETRIES)),
                # A proxy of the environment (http_proxy) would learn the token.
                ("grpc.enable_http_proxy", int(not is_this_machine(address))),
            ],
        )
        self._predictions = self._channel.unary_unary(
            f"/{_SERVICE}.InferenceAPIsService/Predictions",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def send(
        self, name: str, version: str | None, images: Images, options: Mapping[str, str]
    ) -> Answer:
        """See `Transport.send`."""
        grpc = _import_grpc()
        inputs = {option: value.encode() for option, value in options.items()}
        if len(images) == 1:
            inputs["file"] = images[0][1]
        elif images:
            inputs["file"] = _zip(images)
        request = self._request(model_name=name, model_version=version or "", input=inputs)
        try:
            body: bytes = self._predictions(
                request, timeout=self._timeout, metadata=self._metadata
            ).prediction
        except grpc.RpcError as error:
            return self._failed(error)
        return Answer(_status(body), body)

    def close(self) -> None:
        """See `Transport.close`."""
        self._channel.close()

    def _failed(self, error: Any) -> Answer:
        """What TorchServe itself refuses comes as an error of gRPC."""
        code, details = error.code().name, str(error.details())
        if code == "DEADLINE_EXCEEDED":
            raise no_answer(self.address, self._timeout) from error
        if code == "UNAVAILABLE" and "connect" in details.lower():
            raise no_server(self.address, error) from error
        statuses = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401}
        statuses |= {"PERMISSION_DENIED": 403, "UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 413}
        # TorchServe gives most refusals the code INTERNAL and tells its own error in the text.
        status = 404 if "NotFoundException" in details else statuses.get(code, 500)
        body = {"code": status, "type": code, "message": details}
        return Answer(status, json.dumps(body).encode())


def _status(body: bytes) -> int:
    """The status that a refusal's JSON carries; 200 for every other body."""
    if not body.startswith(b'{"code":'):
        return 200
    try:
        return int(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return 200


def _zip(images: Images) -> bytes:
    """Images in order; entry names are made different, as names of files may repeat."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, data) in enumerate(images):
            archive.writestr(f"{index}-{name.rpartition('/')[2]}", data)
    return file.getvalue()


def _import_grpc() -> Any:
    try:
        return importlib.import_module("grpc")
    except ModuleNotFoundError as error:
        raise ServerError(
            "gRPC needs the package grpcio: pip install 'torchserve-ensemble[grpc]'"
        ) from error


@cache
def _messages() -> tuple[Any, Any]:
    """The classes PredictionsRequest and PredictionResponse."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="torchserve_ensemble/inference.proto", package=_SERVICE, syntax="proto3"
    )
    request = file.message_type.add(name="PredictionsRequest")
    for number, name in ((1, "model_name"), (2, "model_version")):
        request.field.add(
            name=name, number=number, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL
        )
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    request.field.add(
        name="input",
        number=3,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=f".{_SERVICE}.PredictionsRequest.InputEntry",
    )
    response = file.message_type.add(name="PredictionResponse")
    response.field.add(
        name="prediction", number=1, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [pool.FindMessageTypeByName(f"{_SERVICE}.{m.name}") for m in file.message_type]
    first, second = (message_factory.GetMessageClass(each) for each in found)
    return first, second
