"""The work of a confined process in tests: it unpickles a file without any restriction.

So the code of the file does run, and only the sandbox keeps it from doing harm.
"""

from __future__ import annotations

import ctypes  # noqa: F401  a confined process can import nothing
import os
import pickle
import socket  # noqa: F401
import subprocess  # noqa: F401
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

asked = threading.Event()
answered = threading.Event()
opened: list[str] = []


def _open_a_file() -> None:
    asked.wait()
    try:
        opened.append(str(os.open("/etc/passwd", os.O_RDONLY)))
    except OSError as error:
        opened.append(type(error).__name__)
    answered.set()


def opened_by_an_older_thread() -> str:
    """Let a thread that was started before the process was confined open a file."""
    asked.set()
    answered.wait()
    return opened[0]


def warm_up() -> None:
    threading.Thread(target=_open_a_file, daemon=True).start()


def answer(source: BinaryIO) -> Iterator[dict[str, Any] | bytes]:
    result = pickle.load(source)
    yield {"result": result if isinstance(result, int | str | list) else type(result).__name__}
    if isinstance(result, bytes):
        yield result
