"""How fast a running server answers: clients that each wait for an answer before they ask again."""

from __future__ import annotations

import http.client
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from ..handlers.base.errors import ServerError


@dataclass(frozen=True)
class LoadFigures:
    """What was measured.

    Attributes:
        clients: at the same time.
        images_per_second: answered.
        p50_ms: median time of an answer.
        p99_ms: of a hundred answers one takes longer.
    """

    clients: int
    images_per_second: float
    p50_ms: float
    p99_ms: float


def closed_loop(
    address: str,
    model: str,
    images: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    token: str | None = None,
) -> LoadFigures:
    """Ask about one image after the other, on connections that are kept alive.

    Args:
        address: of the inference API.
        model: its name.
        images: files, sent in turns.
        clients: connections.
        seconds: to measure for, after a warm-up of half a second.
        token: of the inference API.

    Raises:
        ServerError: the server refuses an image, or cannot be reached.
    """
    place = urlsplit(address)
    url = f"{address}/predictions/{model}"
    # Encoded beforehand: clients share the cores with the server.
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    forms = [
        requests.Request("POST", url, headers=headers, files={"file": image}).prepare()
        for image in images
    ]
    begin = time.perf_counter() + 0.5
    end = begin + seconds
    found: list[tuple[float, float]] = []
    failures: list[Exception] = []

    def ask_on(number: int) -> None:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        try:
            for form in itertools.cycle([*forms[number:], *forms[:number]]):
                started = time.perf_counter()
                if started >= end or failures:
                    return
                connection.request("POST", form.path_url, form.body, form.headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise ServerError(f"{answer.status}: {content[:300].decode(errors='replace')}")
                found.append((started, time.perf_counter()))
        except (OSError, http.client.HTTPException, ServerError) as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [
        threading.Thread(target=ask_on, args=(number % len(forms),)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise ServerError(f"{address}, model '{model}': {failures[0]}")
    answered = [(a, b) for a, b in found if b >= begin]
    times = sorted(1000 * (b - a) for a, b in answered)
    if not times:
        raise ServerError(f"{address}, model '{model}': no answer within {seconds:g} s")
    last = max(b for _, b in answered)
    return LoadFigures(
        clients=clients,
        images_per_second=len(times) / (last - begin),
        p50_ms=statistics.median(times),
        p99_ms=times[int(0.99 * (len(times) - 1))],
    )
