"""The load generator: requests to a running server, and how many images it answers how fast.

`ts-ensemble profile` and the benchmarks measure with it, so that their figures mean the same.

- An image counts for throughput if its answer arrives within the measured time.
- A latency lasts from sending a request to the last byte of its answer. It counts if the request
  was sent within the measured time, however late the answer arrives. Under an open loop it lasts
  from the moment at which the request was to arrive, so that a late generator or full connections
  never hide a wait (coordinated omission).
- Every other end of a request is an error: no connection, no answer in time, any status but 200.
  Errors are counted by reason, those of the warm-up too, and have no latency.

Bodies are encoded beforehand and connections are kept alive, since clients may share the cores with
the server.
"""

from __future__ import annotations

import http.client
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ..handlers.base.errors import ServerError

BodyForm = Literal["multipart", "raw"]
Arrivals = Literal["poisson", "fixed"]

_TIMEOUT_SECONDS = 30
"""A request that a server has lost must not hold up the whole measurement."""

_PAUSE_AFTER_ERROR_SECONDS = 0.05
"""A server that refuses at once is not asked again without a pause."""

_OPEN_LOOP_CONNECTIONS = 64
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class LoadTarget:
    """Where requests go, and how images are put into them.

    Attributes:
        address: such as ``http://127.0.0.1:8080``.
        paths: more than one where the client itself must ask for each member.
        form: multipart puts all images of a request into one body, under the name ``file``; with
            raw bodies the client sends one request for each image, all at once.
        fields: further fields of a multipart form.
        image_type: media type of the images.
        token: of the inference API, if the server asks for one.
    """

    address: str
    paths: tuple[str, ...]
    form: BodyForm = "multipart"
    fields: Mapping[str, str] = field(default_factory=dict)
    image_type: str = "image/jpeg"
    token: str | None = None


@dataclass(frozen=True)
class EncodedRequest:
    """One HTTP request whose body is ready to be sent."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def encode(target: LoadTarget, images: Sequence[bytes]) -> list[EncodedRequest]:
    """Encode the HTTP requests that together ask every member about some images."""
    authorization = {} if target.token is None else {"Authorization": f"Bearer {target.token}"}
    if target.form == "raw":
        headers = authorization | {"Content-Type": target.image_type}
        return [EncodedRequest(path, image, headers) for path in target.paths for image in images]
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, value in target.fields.items():
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()]
        lines += [value.encode(), b"\r\n"]
    for number, image in enumerate(images):
        header = f'Content-Disposition: form-data; name="file"; filename="{number}"'
        lines += [f"--{boundary}\r\n{header}\r\nContent-Type: {target.image_type}\r\n\r\n".encode()]
        lines += [image, b"\r\n"]
    body = b"".join([*lines, f"--{boundary}--\r\n".encode()])
    headers = authorization | {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return [EncodedRequest(path, body, headers) for path in target.paths]


class LoadClient:
    """One client with its own connections, which are kept alive."""

    def __init__(self, target: LoadTarget) -> None:
        parts = urlsplit(target.address)
        self._host, self._port = parts.hostname or "", parts.port
        self._connections: list[http.client.HTTPConnection] = []

    def ask(self, requests: Sequence[EncodedRequest]) -> list[bytes]:
        """Send requests, each on a connection of its own, and wait for all answers.

        Raises:
            OSError, HTTPException: there is no answer, or its status is not 200.
        """
        while len(self._connections) < len(requests):
            self._connections.append(
                http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
            )
        try:
            pairs = list(zip(self._connections, requests, strict=False))
            for connection, request in pairs:
                connection.request("POST", request.path, request.body, dict(request.headers))
            return [_answer(connection) for connection, _ in pairs]
        except (OSError, http.client.HTTPException):
            # A connection with an answer half read cannot be used again.
            self.close()
            raise

    def close(self) -> None:
        """Close the connections; `ask` opens them again."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def _answer(connection: http.client.HTTPConnection) -> bytes:
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise http.client.HTTPException(
            f"{response.status}: {content[:500].decode(errors='replace')}"
        )
    return content


@dataclass
class LoadMeasurement:
    """What one load measured.

    Attributes:
        images: images that were answered within the measured time.
        seconds: the measured time.
        latencies_ms: of the answered requests that were sent within it.
        errors: reason -> number of requests.
        images_all: images that were answered at all, in the warm-up too.
        cpu_seconds: processor time that the load generator itself took.
    """

    images: int = 0
    seconds: float = 0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    images_all: int = 0
    cpu_seconds: float = 0

    @property
    def images_per_second(self) -> float:
        """Throughput within the measured time."""
        return self.images / self.seconds

    def count_error(self, error: Exception) -> None:
        """Count one request that has no answer."""
        reason = f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARACTERS]
        self.errors[reason] = self.errors.get(reason, 0) + 1


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of some values; None where there are none.

    Args:
        values: in any order.
        share: from 0 (exclusive) to 1.
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


@dataclass(frozen=True)
class LoadMetrics:
    """Throughput and latency under one load.

    Attributes:
        clients: how many clients asked at the same time.
        images_per_second: images that were answered in a second.
        p50_ms: median latency.
        p99_ms: the latency that one request in a hundred exceeds.
    """

    clients: int
    images_per_second: float
    p50_ms: float
    p99_ms: float


def metrics_of(measurement: LoadMeasurement, clients: int, subject: str) -> LoadMetrics:
    """Summarise a measurement without errors.

    Args:
        measurement: of a load.
        clients: how many clients asked at the same time.
        subject: what was asked, for messages.

    Raises:
        ServerError: a request had no answer, or none arrived within the measured time.
    """
    if measurement.errors:
        raise ServerError(f"{subject}: {next(iter(measurement.errors))}")
    p50, p99 = (percentile(measurement.latencies_ms, share) for share in (0.5, 0.99))
    if p50 is None or p99 is None:
        raise ServerError(f"{subject}: no answer within {measurement.seconds:g} s")
    return LoadMetrics(clients, measurement.images_per_second, p50, p99)


def closed_loop(
    target: LoadTarget,
    images: Sequence[bytes],
    *,
    clients: int,
    size: int = 1,
    seconds: float,
    warm_up: float = 0.5,
    stop_at_error: bool = False,
) -> LoadMeasurement:
    """Every client sends its next request when it has the answer to the last one.

    Args:
        target: the server.
        images: encoded images, sent in turn.
        clients: how many ask at the same time.
        size: images in a request.
        seconds: the measured time.
        warm_up: seconds of load before it.
        stop_at_error: end at the first error.
    """
    questions = _questions(target, images, size)
    result = LoadMeasurement(seconds=seconds)
    lock = threading.Lock()
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    def run_client(number: int) -> None:
        position = number * len(questions) // clients
        with closing(LoadClient(target)) as client:
            while (sent := time.perf_counter()) < end:
                if stop_at_error and result.errors:
                    return
                try:
                    client.ask(questions[position % len(questions)])
                except (OSError, http.client.HTTPException) as error:
                    with lock:
                        result.count_error(error)
                    time.sleep(_PAUSE_AFTER_ERROR_SECONDS)
                    continue
                finally:
                    position += 1
                answered = time.perf_counter()
                with lock:
                    result.images_all += size
                    if begin <= answered < end:
                        result.images += size
                    # By when it was sent: otherwise the slowest answers, which arrive after the
                    # end, would leave no latency.
                    if begin <= sent < end:
                        result.latencies_ms.append(round(1000 * (answered - sent), 2))

    _run_threads(clients, run_client)
    result.cpu_seconds = time.process_time()
    return result


def open_loop(
    target: LoadTarget,
    images: Sequence[bytes],
    *,
    rate: float,
    arrivals: Arrivals,
    size: int,
    seconds: float,
) -> LoadMeasurement:
    """Requests arrive whether or not earlier ones are answered, as those of many users do.

    Args:
        target: the server.
        images: encoded images, sent in turn.
        rate: requests in a second.
        arrivals: at even distances, or independent of each other.
        size: images in a request.
        seconds: for how long requests arrive.
    """
    questions = _questions(target, images, size)
    schedule = arrival_times(rate, arrivals, seconds)
    result = LoadMeasurement()
    lock = threading.Lock()
    numbers = iter(range(len(schedule)))
    begin = time.perf_counter() + 0.05

    def run_connection(_: int) -> None:
        with closing(LoadClient(target)) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                arrival = begin + schedule[number]
                time.sleep(max(0.0, arrival - time.perf_counter()))
                try:
                    client.ask(questions[number % len(questions)])
                except (OSError, http.client.HTTPException) as error:
                    with lock:
                        result.count_error(error)
                    continue
                with lock:
                    result.images += size
                    result.latencies_ms.append(round(1000 * (time.perf_counter() - arrival), 2))

    _run_threads(min(_OPEN_LOOP_CONNECTIONS, len(schedule)), run_connection)
    result.seconds = max(seconds, time.perf_counter() - begin)
    result.images_all = result.images
    result.cpu_seconds = time.process_time()
    return result


def arrival_times(rate: float, arrivals: Arrivals, seconds: float) -> list[float]:
    """When requests arrive, in seconds from the start; equal arguments give equal times."""
    if arrivals == "fixed":
        return [number / rate for number in range(max(1, int(rate * seconds)))]
    generator = random.Random(0)
    times: list[float] = []
    moment = generator.expovariate(rate)
    while moment < seconds or not times:
        times.append(moment)
        moment += generator.expovariate(rate)
    return times


def _questions(
    target: LoadTarget, images: Sequence[bytes], size: int
) -> list[list[EncodedRequest]]:
    """Requests about `size` images at a time, each image in turn."""
    count = max(1, len(images) // size)
    return [
        encode(target, [images[(start * size + i) % len(images)] for i in range(size)])
        for start in range(count)
    ]


def _run_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
