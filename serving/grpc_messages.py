"""Channels to TorchServe's gRPC services, and their messages.

Messages are described here and not generated: they are few, and generated code is bound to one
version of protobuf. Field numbers are those of TorchServe 0.12.0's .proto files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .settings import is_loopback

Field = tuple[int, str, Literal["string", "bytes", "int32", "bool", "map"]]
"""Number, name and type; a map is one of strings to bytes."""

# The limit that gRPC itself has, in bytes.
_MAX_MESSAGE_BYTES = 2**31 - 1


def open_channel(address: str) -> Any:
    """A channel to ``host:port``. What is on this machine is never asked for through a proxy."""
    host = address.rpartition(":")[0].strip("[]")
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", int(not is_loopback(host))),
        ],
    )


def message_classes(package: str, messages: Mapping[str, Sequence[Field]]) -> tuple[Any, ...]:
    """Classes of messages, in the order in which they are given.

    Args:
        package: of the service, e.g. ``org.pytorch.serve.grpc.inference``.
        messages: name of each message -> its fields.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    types = {
        "string": kinds.TYPE_STRING,
        "bytes": kinds.TYPE_BYTES,
        "int32": kinds.TYPE_INT32,
        "bool": kinds.TYPE_BOOL,
    }
    file = descriptor_pb2.FileDescriptorProto(
        name=f"torchserve_ensemble/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            if kind != "map":
                message.field.add(
                    name=field, number=number, type=types[kind], label=kinds.LABEL_OPTIONAL
                )
                continue
            # On the wire a map is a repeated message of a key and a value.
            entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
            entry.options.map_entry = True
            for part, part_name, part_kind in ((1, "key", "string"), (2, "value", "bytes")):
                entry.field.add(
                    name=part_name, number=part, type=types[part_kind], label=kinds.LABEL_OPTIONAL
                )
            message.field.add(
                name=field,
                number=number,
                type=kinds.TYPE_MESSAGE,
                label=kinds.LABEL_REPEATED,
                type_name=f".{package}.{name}.{entry.name}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    )
