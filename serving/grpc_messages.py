"""Opens channels to TorchServe's gRPC services, and makes classes for their messages.

The classes are made at run time and not by protoc: there are few messages, and generated code is
bound to one version of protobuf. Field numbers come from the .proto files of TorchServe 0.12.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .sessions import is_this_machine

Field = tuple[int, str, Literal["string", "bytes", "int32", "bool", "map"]]
"""Number, name and type of a message's field; ``map`` is a map from strings to bytes."""

# gRPC itself allows no longer messages.
_MAX_MESSAGE_BYTES = 2**31 - 1


def open_channel(address: str) -> Any:
    """Open a channel to ``host:port``, without a proxy if the server is on this machine.

    A proxy would learn the token.
    """
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", int(not is_this_machine(address))),
        ],
    )


def message_classes(package: str, messages: Mapping[str, Sequence[Field]]) -> tuple[Any, ...]:
    """Make one class for each message.

    Args:
        package: protobuf package of the service, e.g. ``org.pytorch.serve.grpc.inference``.
        messages: name of each message -> its fields.

    Returns:
        The classes, in the order of `messages`.
    """
    descriptor = descriptor_pb2.FieldDescriptorProto
    types = {
        "string": descriptor.TYPE_STRING,
        "bytes": descriptor.TYPE_BYTES,
        "int32": descriptor.TYPE_INT32,
        "bool": descriptor.TYPE_BOOL,
    }
    file = descriptor_pb2.FileDescriptorProto(
        name=f"torchserve_ensemble/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field, type_name in fields:
            if type_name != "map":
                message.field.add(
                    name=field,
                    number=number,
                    type=types[type_name],
                    label=descriptor.LABEL_OPTIONAL,
                )
                continue
            # Protobuf encodes a map as a repeated message with a key and a value.
            entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
            entry.options.map_entry = True
            for entry_number, entry_field, entry_type in (
                (1, "key", "string"),
                (2, "value", "bytes"),
            ):
                entry.field.add(
                    name=entry_field,
                    number=entry_number,
                    type=types[entry_type],
                    label=descriptor.LABEL_OPTIONAL,
                )
            message.field.add(
                name=field,
                number=number,
                type=descriptor.TYPE_MESSAGE,
                label=descriptor.LABEL_REPEATED,
                type_name=f".{package}.{name}.{entry.name}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    )
