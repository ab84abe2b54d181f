"""Reads the messages of TorchServe's frontend, with few system calls and a limit on parts.

TorchServe's own reader (``ts/protocol/otf_message_handler.py``) makes six system calls for each
part of a form, and has no limit on their number. A form with four million empty fields keeps a
worker busy for half a minute, before the handler sees any of it.

A message is a list of requests, and a request is an identifier, a list of headers and a list of
parts. Before every identifier, text and value stands its length in bytes; a length of -1 ends a
list.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_MAX_BYTES_PER_RECEIVE = 1 << 18
"""Size of the buffer. Values of which more bytes are missing are received without the buffer."""

_LENGTH = struct.Struct("!i")
_END_OF_LIST = -1


class FrontendMessages:
    """Reads messages from the connection to the frontend, through a buffer of received bytes.

    `retrieve_buffer` and `retrieve_inference_msg` replace the functions ``_retrieve_buffer`` and
    ``_retrieve_inference_msg`` of TorchServe's module.
    """

    def __init__(self, max_parts: int, on_wait: Callable[[], None] | None = None) -> None:
        """Begin with an empty buffer.

        Args:
            max_parts: number of parts that one request may have. One part more is kept, so that the
                handler can see that the request has too many; all later ones are skipped.
            on_wait: called before the worker waits for bytes, when it has handed back its answers.
        """
        self._max_parts = max_parts
        self._on_wait = on_wait
        self._received = b""
        self._position = 0

    def retrieve_buffer(self, connection: socket.socket, length: int) -> bytearray:
        """Read the next `length` bytes; end this process if the frontend closed the connection."""
        start = self._position
        buffered = self._received[start : start + length]
        self._position += len(buffered)
        content = bytearray(length)
        content[: len(buffered)] = buffered
        missing = memoryview(content)[len(buffered) :]
        if missing and self._on_wait is not None:
            self._on_wait()
        while missing:
            if len(missing) >= _MAX_BYTES_PER_RECEIVE:
                size = connection.recv_into(missing)
            else:
                self._refill(connection)
                size = min(len(missing), len(self._received))
                missing[:size] = self._received[:size]
                self._position = size
            if not size:
                _end_process()
            missing = missing[size:]
        return content

    def retrieve_inference_msg(self, connection: socket.socket) -> list[dict[str, Any]]:
        """Read the requests of one batch, as the dicts that TorchServe's own reader makes.

        All values stay bytes, also those of JSON, which TorchServe's own reader would decode.
        """
        requests = []
        while (length := self._length(connection)) != _END_OF_LIST:
            identifier = self.retrieve_buffer(connection, length)
            requests.append(
                {
                    "requestId": identifier,
                    "headers": self._headers(connection),
                    "parameters": self._parts(connection),
                }
            )
        return requests

    def _headers(self, connection: socket.socket) -> list[dict[str, bytearray]]:
        """Read the headers of a request."""
        headers = []
        while (length := self._length(connection)) != _END_OF_LIST:
            name = self.retrieve_buffer(connection, length)
            value = self.retrieve_buffer(connection, self._length(connection))
            headers.append({"name": name, "value": value})
        return headers

    def _parts(self, connection: socket.socket) -> list[dict[str, Any]]:
        """Read the parts of a request; those after the limit are skipped."""
        parts: list[dict[str, Any]] = []
        while (length := self._length(connection)) != _END_OF_LIST:
            if len(parts) > self._max_parts:
                self._skip(connection, length)
                for _ in range(2):  # The content type and the value.
                    self._skip(connection, self._length(connection))
                self._skip_buffered_parts()
                continue
            name = self.retrieve_buffer(connection, length)
            content_type = self.retrieve_buffer(connection, self._length(connection))
            value = self.retrieve_buffer(connection, self._length(connection))
            parts.append(
                {
                    "name": name.decode("utf-8", errors="replace"),
                    "contentType": content_type.decode("utf-8", errors="replace"),
                    "value": value,
                }
            )
        return parts

    def _length(self, connection: socket.socket) -> int:
        """Read one length, or `_END_OF_LIST`."""
        position = self._position
        if position + _LENGTH.size > len(self._received):
            return int(_LENGTH.unpack(self.retrieve_buffer(connection, _LENGTH.size))[0])
        self._position = position + _LENGTH.size
        return int(_LENGTH.unpack_from(self._received, position)[0])

    def _skip(self, connection: socket.socket, length: int) -> None:
        """Skip the next `length` bytes."""
        if self._position + length <= len(self._received):
            self._position += length
        else:
            self.retrieve_buffer(connection, length)

    def _skip_buffered_parts(self) -> None:
        """Skip the parts that are in the buffer completely, some million of them in a second."""
        received, position, unpack = self._received, self._position, _LENGTH.unpack_from
        # The length after a part must be in the buffer too: it says whether the list goes on.
        last = len(received) - _LENGTH.size
        try:
            while True:
                after = position
                for _ in range(3):  # Name, content type and value.
                    (length,) = unpack(received, after)
                    if length < 0:
                        return
                    after += _LENGTH.size + length
                if after > last:
                    return
                position = after
        except struct.error:  # The buffer ends within this part.
            return
        finally:
            self._position = position

    def _refill(self, connection: socket.socket) -> None:
        """Receive bytes in place of those in the buffer, all of which must be read already."""
        self._received, self._position = connection.recv(_MAX_BYTES_PER_RECEIVE), 0


def _end_process() -> None:
    """End the worker without an error, as TorchServe's own reader does."""
    logger.info("Frontend disconnected.")
    sys.exit(0)
