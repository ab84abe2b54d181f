"""Registration over TorchServe's gRPC management service.

TorchServe extracts an archive within the call that registers it. Over REST that happens in an event
loop which connections of other clients share, so that these wait for all of it: 3.2 to 3.9 s for an
archive of 400 MB. gRPC calls run on threads of their own: the same clients waited 0.1 s.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import grpc

from ..handlers.base.errors import ServerError
from .grpc_messages import message_classes, open_channel

_SERVICE = "org.pytorch.serve.grpc.management"
_WITHOUT_CONTROL = "Model API disabled"
"""TorchServe's message, with PERMISSION_DENIED, if enable_model_api is false."""

_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    # What TorchServe does not translate, and that is in this call a version that exists.
    "UNKNOWN": 409,
}


def register_model(
    address: str, archive: str, *, workers: int, token: str | None, timeout: float
) -> None:
    """``RegisterModel``; returns when the archive is extracted, while its workers still load.

    Args:
        address: of the gRPC management service, e.g. ``127.0.0.1:7071``.
        archive: file name in the server's model store, or an URL that it may load.
        workers: for archives that do not say themselves.
        token: the management key, where token authorization is on.
        timeout: seconds.

    Raises:
        ServerError: what TorchServe answers, its status that of the REST API.
    """
    request, response = _messages()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with open_channel(address) as channel:
        call = channel.unary_unary(
            f"/{_SERVICE}.ManagementAPIsService/RegisterModel",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            call(request(url=archive, initial_workers=workers), timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise _refusal(address, archive, error) from error


@cache
def _messages() -> tuple[Any, ...]:
    return message_classes(
        _SERVICE,
        {
            "RegisterModelRequest": [(3, "initial_workers", "int32"), (9, "url", "string")],
            "ManagementResponse": [(1, "msg", "string")],
        },
    )


def _refusal(address: str, archive: str, error: Any) -> ServerError:
    code = error.code().name
    # The second line is the name of a Java class.
    details = str(error.details() or "").partition("\n")[0]
    refusal = ServerError(f"{archive}: {details or 'refused without a reason'} ({code}, {address})")
    refusal.status = 405 if _WITHOUT_CONTROL in details else _STATUSES.get(code, 500)
    return refusal
