"""The messages of TorchServe's frontend, read in large pieces and with a bound on their parts.

TorchServe's own reader (``ts/protocol/otf_message_handler.py``) takes six system calls for each
part of a form, and all parts that come: a form of four million empty fields keeps a worker busy for
half a minute, before the handler sees any of it.

A request is a list of headers and a list of parts; each text and each value stands behind its
length, and a length of -1 ends a list.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from typing import Any

logger = logging.getLogger(__name__)

_PIECE = 1 << 18
_LENGTH = struct.Struct("!i")
_END = -1


class FrontendMessages:
    """Reads what comes over the connection to the frontend.

    The methods take the places of functions of the same names in TorchServe's module, which call
    each other through it.
    """

    def __init__(self, max_parts: int) -> None:
        """Nothing is read yet.

        Args:
            max_parts: parts of one request that are kept. One more is, so that the request is seen
                to have too many; those after it are passed over.
        """
        self._max_parts = max_parts
        self._data = b""
        self._position = 0

    def retrieve_buffer(self, connection: socket.socket, length: int) -> bytearray:
        """The next bytes. The process ends where the frontend has closed the connection."""
        start = self._position
        there = self._data[start : start + length]
        self._position += len(there)
        buffer = bytearray(length)
        buffer[: len(there)] = there
        place = memoryview(buffer)[len(there) :]
        while place:
            if len(place) >= _PIECE:
                received = connection.recv_into(place)
            else:
                self._fill(connection)
                received = min(len(place), len(self._data))
                place[:received] = self._data[:received]
                self._position = received
            if not received:
                _end()
            place = place[received:]
        return buffer

    def retrieve_inference_msg(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The requests of one batch."""
        requests = []
        while (length := self._length(connection)) != _END:
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
        headers = []
        while (length := self._length(connection)) != _END:
            name = self.retrieve_buffer(connection, length)
            value = self.retrieve_buffer(connection, self._length(connection))
            headers.append({"name": name, "value": value})
        return headers

    def _parts(self, connection: socket.socket) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        while (length := self._length(connection)) != _END:
            if len(parts) > self._max_parts:
                self._skip(connection, length)
                for _ in range(2):
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
        position = self._position
        if position + _LENGTH.size > len(self._data):
            return int(_LENGTH.unpack(self.retrieve_buffer(connection, _LENGTH.size))[0])
        self._position = position + _LENGTH.size
        return int(_LENGTH.unpack_from(self._data, position)[0])

    def _skip(self, connection: socket.socket, length: int) -> None:
        if self._position + length <= len(self._data):
            self._position += length
        else:
            self.retrieve_buffer(connection, length)

    def _skip_buffered_parts(self) -> None:
        """Pass over the parts that have come in full; millions of them take a second."""
        data, position, unpack = self._data, self._position, _LENGTH.unpack_from
        # Behind a part there is a length, which tells whether another one follows.
        last = len(data) - _LENGTH.size
        try:
            while True:
                after = position
                for _ in range(3):
                    (length,) = unpack(data, after)
                    if length < 0:
                        return
                    after += _LENGTH.size + length
                if after > last:
                    return
                position = after
        except struct.error:  # The rest of this part is still to come.
            return
        finally:
            self._position = position

    def _fill(self, connection: socket.socket) -> None:
        """Replace what was read by what comes next."""
        self._data, self._position = connection.recv(_PIECE), 0


def _end() -> None:
    logger.info("Frontend disconnected.")
    sys.exit(0)
