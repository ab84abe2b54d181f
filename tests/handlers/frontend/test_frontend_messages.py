"""`FrontendMessages` reads what TorchServe's own reader reads, but no more parts than the limit."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.protocol import otf_message_handler as protocol

from torchserve_ensemble.handlers.frontend.messages import FrontendMessages

Request = tuple[bytes, list[tuple[bytes, bytes]], list[tuple[str, str, bytes]]]
END = struct.pack("!i", -1)


def sized(content: bytes) -> bytes:
    """Return a content with its length before it, as a message contains it."""
    return struct.pack("!i", len(content)) + content


def message(requests: list[Request]) -> bytes:
    """Return the message of one batch, as the frontend sends it."""
    written = b""
    for identifier, headers, parts in requests:
        written += sized(identifier)
        written += b"".join(sized(name) + sized(value) for name, value in headers) + END
        for name, content_type, value in parts:
            written += sized(name.encode()) + sized(content_type.encode()) + sized(value)
        written += END
    return written + END


def read(data: bytes, messages: FrontendMessages | None) -> list[dict[str, Any]]:
    """Read a message over a real connection, with TorchServe's own reader if `messages` is None."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=theirs.sendall, args=(data,))
        sender.start()
        reader = messages.retrieve_inference_msg if messages else protocol._retrieve_inference_msg
        requests: list[dict[str, Any]] = reader(ours)
        sender.join()
        return requests


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
REQUESTS = st.lists(
    st.tuples(
        st.binary(max_size=40),
        st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3),
        st.lists(st.tuples(TEXT, st.just("image/png"), st.binary(max_size=3000)), max_size=5),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS)
def test_reads_what_torchserve_reads(requests: list[Request]) -> None:
    data = message(requests)
    assert read(data, FrontendMessages(100)) == read(data, None)


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 5_000_000])
def test_large_values_are_read_as_torchserve_reads_them(size: int) -> None:
    data = message([(b"id", [], [("body", "", bytes(size)), ("policy", "", b"any")])] * 2)
    assert read(data, FrontendMessages(100)) == read(data, None)


def test_one_part_more_than_the_limit_is_read_so_that_the_request_can_be_refused() -> None:
    parts = [(f"a{i}", "", b"x" * i) for i in range(5000)]
    (first, second) = read(
        message([(b"1", [], parts), (b"2", [], parts[:2])]), FrontendMessages(10)
    )
    assert [part["name"] for part in first["parameters"]] == [f"a{i}" for i in range(11)]
    assert len(second["parameters"]) == 2


def test_the_worker_ends_with_the_frontend() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(SystemExit):
            FrontendMessages(1).retrieve_inference_msg(ours)
