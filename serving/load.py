"""A load generator: it sends images to a running server, and measures throughput and latency.

`ts-ensemble profile` and the benchmarks both measure with it, so that their metrics mean the same:

- An image counts for the throughput if its answer arrives within the measured time.
- A latency lasts from the sending of a request to the last byte of its answer. It counts if the
  request was sent within the measured time, however late the answer arrives. In an open loop it
  begins at the moment for which the request was scheduled. A late generator, or connections that
  are all in use, then cannot hide a wait (coordinated omission).
- A request without an answer, and an answer with another status than 200, is an error. Errors are
  counted by reason, also those of the warm-up, and have no latency.

Bodies are encoded before the measurement and connections are kept alive, because the clients may
share the cores with the server.
"""

from __future__ import annotations

import http.client
import io
import math
import random
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

from ..handlers.base.errors import ServerError
from .sample_names import FIELD
from .transports import NoAnswerError

BodyForm = Literal["multipart", "raw"]
"""Form of a request's body: a multipart form with all images, or the bytes of one image alone."""

Arrivals = Literal["poisson", "fixed"]
"""How an open loop distributes its requests over time: at random, or at even distances."""

_TIMEOUT_SECONDS = 30.0
"""A request that gets no answer ends after this time, so that the measurement ends too."""

_PAUSE_AFTER_ERROR_SECONDS = 0.05
"""A client waits after an error: a server that refuses at once would get thousands of requests."""

_MAX_OPEN_LOOP_CONNECTIONS = 64
_MAX_REASON_CHARACTERS = 300
_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class LoadTarget:
    """The server that is measured, and how images are sent to it.

    Attributes:
        address: address of the server, e.g. ``http://127.0.0.1:8080``.
        paths: paths of the requests; several, if the client must ask for each member itself.
        form: multipart sends all images in one body, in parts named ``file``; raw sends one request
            for each image, all of them side by side.
        fields: further fields of a multipart form.
        image_type: media type that all images are declared as; None: each image's own type.
        token: token of the inference API, if the server asks for one.
    """

    address: str
    paths: tuple[str, ...]
    form: BodyForm = "multipart"
    fields: Mapping[str, str] = field(default_factory=dict)
    image_type: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class EncodedRequest:
    """One HTTP request, ready to be sent with POST."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def encode(target: LoadTarget, images: Sequence[bytes]) -> list[EncodedRequest]:
    """Encode the HTTP requests which together ask a target for predictions of some images."""
    authorization = {} if target.token is None else {"Authorization": f"Bearer {target.token}"}
    media_types = [target.image_type or media_type(image) for image in images]
    if target.form == "raw":
        return [
            EncodedRequest(path, image, authorization | {"Content-Type": image_type})
            for path in target.paths
            for image, image_type in zip(images, media_types, strict=True)
        ]
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, value in target.fields.items():
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()]
        lines += [value.encode(), b"\r\n"]
    for number, (image, image_type) in enumerate(zip(images, media_types, strict=True)):
        header = f'Content-Disposition: form-data; name="{FIELD}"; filename="{number}"'
        lines += [f"--{boundary}\r\n{header}\r\nContent-Type: {image_type}\r\n\r\n".encode()]
        lines += [image, b"\r\n"]
    body = b"".join([*lines, f"--{boundary}--\r\n".encode()])
    headers = authorization | {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return [EncodedRequest(path, body, headers) for path in target.paths]


def media_type(image: bytes) -> str:
    """Return the media type of an encoded image; ``application/octet-stream`` if it is unknown."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(image)) as opened:
            # A large image is the server's concern; only the header is read here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return opened.get_format_mimetype() or _UNKNOWN_TYPE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _UNKNOWN_TYPE


class LoadClient:
    """One client of a server, with connections of its own that it keeps alive."""

    def __init__(self, target: LoadTarget) -> None:
        parts = urlsplit(target.address)
        self._host, self._port = parts.hostname or "", parts.port
        self._connections: list[http.client.HTTPConnection] = []

    def ask(
        self, requests: Sequence[EncodedRequest], *, timeout: float = _TIMEOUT_SECONDS
    ) -> list[bytes]:
        """Send requests, each on a connection of its own, and wait for all answers.

        Args:
            requests: the requests.
            timeout: longest wait for the server to go on, in seconds.

        Raises:
            NoAnswerError: a request had no answer in time.
            ServerError: a request had no answer, or one with another status than 200.
        """
        while len(self._connections) < len(requests):
            self._connections.append(http.client.HTTPConnection(self._host, self._port))
        try:
            pairs = list(zip(self._connections, requests, strict=False))
            for connection, request in pairs:
                connection.timeout = timeout
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                connection.request("POST", request.path, request.body, dict(request.headers))
            return [_read_answer(connection) for connection, _ in pairs]
        except BaseException as error:
            # A connection whose answer was not read to its end cannot be used again.
            self.close()
            if isinstance(error, TimeoutError):
                raise NoAnswerError(f"no answer within {timeout:g} s") from error
            if isinstance(error, OSError | http.client.HTTPException):
                raise ServerError(f"no answer: {error or type(error).__name__}") from error
            raise

    def close(self) -> None:
        """Close all connections; `ask` opens new ones."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def _read_answer(connection: http.client.HTTPConnection) -> bytes:
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        refusal = ServerError(f"status {response.status}: {content.decode(errors='replace')}")
        refusal.status = response.status
        raise refusal
    return content


@dataclass
class LoadMeasurement:
    """What was measured while a server was under load.

    Attributes:
        images: number of images that were answered within the measured time.
        seconds: the measured time.
        latencies_ms: latency of each answered request that was sent within the measured time.
        errors: reason -> number of requests that failed for it.
        images_all: number of images that were answered at any time, also in the warm-up.
        cpu_seconds: processor time of the load generator's process.
    """

    images: int = 0
    seconds: float = 0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    images_all: int = 0
    cpu_seconds: float = 0

    @property
    def images_per_second(self) -> float:
        """Throughput: images that were answered within the measured time, in a second."""
        return self.images / self.seconds

    def count_error(self, error: ServerError) -> None:
        """Count one request that failed."""
        reason = error.message[:_MAX_REASON_CHARACTERS]
        self.errors[reason] = self.errors.get(reason, 0) + 1


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile of some values; None if there are no values.

    Args:
        values: numbers in any order.
        share: share of the values that the percentile is not below, above 0 and at most 1.
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


@dataclass(frozen=True)
class LoadMetrics:
    """Throughput and latency under one load.

    Attributes:
        clients: number of clients that sent requests side by side.
        images_per_second: number of images that were answered in a second.
        p50_ms: median latency.
        p99_ms: latency that one request in a hundred exceeds.
    """

    clients: int
    images_per_second: float
    p50_ms: float
    p99_ms: float


def metrics_of(measurement: LoadMeasurement, clients: int, subject: str) -> LoadMetrics:
    """Compute the metrics of a measurement in which no request failed.

    Args:
        measurement: what a closed loop measured.
        clients: number of clients that sent requests side by side.
        subject: server and model that were measured, for messages.

    Raises:
        ServerError: a request failed, or no request was answered.
    """
    if measurement.errors:
        raise ServerError(f"{subject}: {next(iter(measurement.errors))}")
    p50, p99 = (percentile(measurement.latencies_ms, share) for share in (0.5, 0.99))
    if p50 is None or p99 is None:
        raise ServerError(
            f"{subject}: no request was answered within {measurement.seconds:g} s of measurement"
        )
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
    """Measure a server with clients that each send a request after the answer to the last one.

    Args:
        target: the server.
        images: encoded images, which are sent in turn.
        clients: number of clients that send requests side by side.
        size: number of images in a request.
        seconds: the measured time.
        warm_up: seconds of load before the measured time.
        stop_at_error: whether the first error ends the load.
    """
    turns = _encode_in_turn(target, images, size)
    result = LoadMeasurement(seconds=seconds)
    lock = threading.Lock()
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    def run_client(number: int) -> None:
        position = number * len(turns) // clients
        with closing(LoadClient(target)) as client:
            while (sent := time.perf_counter()) < end:
                if stop_at_error and result.errors:
                    return
                try:
                    client.ask(turns[position % len(turns)])
                except ServerError as error:
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
                    # The moment of sending decides. If that of the answer did, the slowest answers,
                    # which arrive after the end, would have no latency.
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
    """Measure a server with requests that are sent on schedule, whether or not others are answered.

    Requests of many users arrive like this. A request that has no answer within `_TIMEOUT_SECONDS`
    of its scheduled moment is an error, also if all connections were in use for so long. So a
    server that never answers ends the measurement as late as one that answers just in time.

    Args:
        target: the server.
        images: encoded images, which are sent in turn.
        rate: requests in a second.
        arrivals: whether requests are scheduled at random (poisson) or at even distances (fixed).
        size: number of images in a request.
        seconds: how long requests are scheduled for.
    """
    turns = _encode_in_turn(target, images, size)
    schedule = arrival_times(rate, arrivals, seconds)
    result = LoadMeasurement()
    lock = threading.Lock()
    numbers = iter(range(len(schedule)))
    too_late = NoAnswerError(f"no answer within {_TIMEOUT_SECONDS:g} s of the scheduled moment")
    num_connections = min(_MAX_OPEN_LOOP_CONNECTIONS, len(schedule))
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
                seconds_left = arrival + _TIMEOUT_SECONDS - time.perf_counter()
                try:
                    if seconds_left <= 0:
                        raise too_late
                    client.ask(turns[number % len(turns)], timeout=seconds_left)
                except ServerError as error:
                    with lock:
                        result.count_error(too_late if isinstance(error, NoAnswerError) else error)
                    continue
                with lock:
                    result.images += size
                    result.latencies_ms.append(round(1000 * (time.perf_counter() - arrival), 2))

    _run_threads(num_connections, run_connection)
    result.seconds = max(seconds, time.perf_counter() - begin)
    result.images_all = result.images
    result.cpu_seconds = time.process_time()
    return result


def arrival_times(rate: float, arrivals: Arrivals, seconds: float) -> list[float]:
    """Return the moments for which requests are scheduled, in seconds from the start.

    Equal arguments give equal moments.
    """
    if arrivals == "fixed":
        return [number / rate for number in range(max(1, int(rate * seconds)))]
    generator = random.Random(0)
    times: list[float] = []
    moment = generator.expovariate(rate)
    while moment < seconds or not times:
        times.append(moment)
        moment += generator.expovariate(rate)
    return times


def _encode_in_turn(
    target: LoadTarget, images: Sequence[bytes], size: int
) -> list[list[EncodedRequest]]:
    """Encode requests with `size` images each, until every image has had its turn."""
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
