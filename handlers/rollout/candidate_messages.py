"""Messages between a worker and the process of its candidate: a length, then a pickle.

Both ends belong to one user and run the code of one archive, so that unpickling adds no danger.
"""

from __future__ import annotations

import pickle
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, content: object, seconds: float | None = None) -> None:
    """Send a message; its tensors should be NumPy arrays, which are pickled much faster.

    Args:
        connection: the connection.
        content: the message.
        seconds: time in which the other end must have received it; None: any time.

    Raises:
        TimeoutError: it has not. A part of the message may have been sent.
        OSError: the other end is gone.
    """
    body = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    connection.settimeout(seconds)
    connection.sendall(_LENGTH.pack(len(body)))
    connection.sendall(body)


def receive(connection: socket.socket, seconds: float | None = None) -> Any:
    """Receive a message.

    Args:
        connection: the connection.
        seconds: time in which the message must be here; None: any time.

    Raises:
        TimeoutError: it is not. A part of the message may have been received.
        EOFError: the other end is gone.
    """
    end = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_receive_bytes(connection, _LENGTH.size, end))
    return pickle.loads(_receive_bytes(connection, length, end))


def _receive_bytes(connection: socket.socket, length: int, end: float | None) -> bytearray:
    content = bytearray(length)
    missing = memoryview(content)
    while missing:
        if end is not None:
            # A timeout of 0 would make the connection non-blocking.
            connection.settimeout(max(1e-3, end - time.monotonic()))
        else:
            connection.settimeout(None)
        try:
            size = connection.recv_into(missing)
        except ConnectionError:
            size = 0
        if size == 0:
            raise EOFError("the other end is gone")
        missing = missing[size:]
    return content
