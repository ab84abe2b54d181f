"""Registers archives over TorchServe's gRPC management service.

TorchServe extracts an archive within the call that registers it. A REST call runs in an event loop
that also serves connections of other clients, so these clients wait until the archive is extracted:
3.2 to 3.9 s for an archive of 400 MB. gRPC calls run on threads of their own, and the same clients
waited 0.1 s.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import grpc

from ..handlers.base.errors import ServerError
from .grpc_messages import message_classes, open_channel

_SERVICE = "org.pytorch.serve.grpc.management"
# TorchServe's message, with the code PERMISSION_DENIED, if enable_model_api is false.
_NO_MODEL_CONTROL = "Model API disabled"
# The gRPC code of a refusal -> the status with which the REST API would refuse.
_HTTP_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    # TorchServe gives no other code if the version is registered already.
    "UNKNOWN": 409,
}


def register_model(
    address: str,
    archive: str,
    *,
    workers: int,
    token: str | None,
    timeout: float,
    batch_size: int | None = None,
    max_batch_delay_ms: int | None = None,
) -> None:
    """Call ``RegisterModel``, and return when the archive is extracted; its workers still load.

    Args:
        address: address of the gRPC management service, e.g. ``127.0.0.1:7071``.
        archive: file name in the server's model store, or a URL from which the server may load.
        workers: number of workers, for archives that do not specify it themselves.
        token: the management token; None if the server asks for none.
        timeout: seconds until the archive must be extracted.
        batch_size: replaces the archive's batch size.
        max_batch_delay_ms: replaces the archive's delay.

    Raises:
        ServerError: TorchServe refused; its `status` is the one that the REST API would answer.
    """
    request, response = _messages()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with open_channel(address) as channel:
        call = channel.unary_unary(
            f"/{_SERVICE}.ManagementAPIsService/RegisterModel",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        message = request(
            url=archive,
            initial_workers=workers,
            # TorchServe takes 0 for a number that is not given.
            batch_size=batch_size or 0,
            max_batch_delay=max_batch_delay_ms or 0,
        )
        try:
            call(message, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise _refusal(address, archive, error) from error


@cache
def _messages() -> tuple[Any, ...]:
    """The classes of ``RegisterModel``'s request and response."""
    return message_classes(
        _SERVICE,
        {
            "RegisterModelRequest": [
                (1, "batch_size", "int32"),
                (3, "initial_workers", "int32"),
                (4, "max_batch_delay", "int32"),
                (9, "url", "string"),
            ],
            "ManagementResponse": [(1, "msg", "string")],
        },
    )


def _refusal(address: str, archive: str, error: Any) -> ServerError:
    """The error to raise after a gRPC call that TorchServe refused."""
    code = error.code().name
    # The second line of the details is only the name of a Java class.
    details = str(error.details() or "").partition("\n")[0]
    refusal = ServerError(f"{archive}: {details or 'refused without a reason'} ({code}, {address})")
    refusal.status = 405 if _NO_MODEL_CONTROL in details else _HTTP_STATUSES.get(code, 500)
    return refusal
