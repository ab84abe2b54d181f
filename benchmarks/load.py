"""Requests to a server, in a process of its own that leaves the cores to the server.

Bodies are encoded beforehand and connections kept alive. ``python -m benchmarks.load --help`` lists
the options; the result is JSON on the standard output.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Form = Literal["multipart", "raw"]
Arrivals = Literal["poisson", "fixed"]

# A request that a server has lost must not hold up the whole run.
_TIMEOUT_SECONDS = 30
_OPEN_LOOP_CONNECTIONS = 64


@dataclass(frozen=True)
class Target:
    """Where requests go, and in which form.

    Attributes:
        address: ``http://127.0.0.1:8080``.
        paths: more than one where the client itself must ask for each member.
        form: multipart takes all images of a request at once, under the name ``file``; with raw
            bodies the client sends one for each image, on as many connections, all at once.
        fields: further fields of a multipart form.
        image_type: media type of the images.
    """

    address: str
    paths: tuple[str, ...]
    form: Form = "multipart"
    fields: Mapping[str, str] = field(default_factory=dict)
    image_type: str = "image/jpeg"

    def arguments(self) -> list[str]:
        """The options of this module's command line that stand for it."""
        found = ["--address", self.address, "--form", self.form, "--image-type", self.image_type]
        for path in self.paths:
            found += ["--path", path]
        for name, value in self.fields.items():
            found += ["--field", f"{name}={value}"]
        return found


@dataclass(frozen=True)
class Request:
    """One HTTP request, encoded."""

    path: str
    body: bytes
    content_type: str


def encode(target: Target, images: Sequence[bytes]) -> list[Request]:
    """The HTTP requests that together ask every member about some images."""
    if target.form == "raw":
        return [
            Request(path, image, target.image_type) for path in target.paths for image in images
        ]
    boundary = secrets.token_hex(16)
    lines = []
    for name, value in target.fields.items():
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()]
        lines += [value.encode(), b"\r\n"]
    for number, image in enumerate(images):
        header = f'Content-Disposition: form-data; name="file"; filename="{number}"'
        lines += [f"--{boundary}\r\n{header}\r\nContent-Type: {target.image_type}\r\n\r\n".encode()]
        lines += [image, b"\r\n"]
    body = b"".join([*lines, f"--{boundary}--\r\n".encode()])
    content_type = f"multipart/form-data; boundary={boundary}"
    return [Request(path, body, content_type) for path in target.paths]


class Client:
    """Connections that are kept alive, as many as one question needs."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.address)
        self._host, self._port = parts.hostname or "", parts.port
        self._connections: list[http.client.HTTPConnection] = []

    def ask(self, requests: Sequence[Request]) -> list[bytes]:
        """Send all, then wait for all answers.

        Raises:
            OSError, HTTPException: no answer, or one that is not 200.
        """
        while len(self._connections) < len(requests):
            self._connections.append(
                http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
            )
        try:
            pairs = list(zip(self._connections, requests, strict=False))
            for connection, request in pairs:
                headers = {"Content-Type": request.content_type}
                connection.request("POST", request.path, request.body, headers)
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
class Measurement:
    """What was measured.

    Attributes:
        images: answered within the measured time.
        seconds: the measured time.
        latencies_ms: of the requests that were answered within it.
        errors: requests without an answer, by reason.
        images_all: answered in all, with the warm-up.
        cpu_seconds: what the load generator itself took.
    """

    images: int = 0
    seconds: float = 0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    images_all: int = 0
    cpu_seconds: float = 0

    def fail(self, error: Exception) -> None:
        """Count an error."""
        reason = f"{type(error).__name__}: {error}"[:300]
        self.errors[reason] = self.errors.get(reason, 0) + 1


def closed_loop(
    target: Target,
    images: Sequence[bytes],
    *,
    clients: int,
    size: int,
    seconds: float,
    warm_up: float,
) -> Measurement:
    """Every client sends its next request when it has the answer to the last one.

    Args:
        target: the server.
        images: taken in turn.
        clients: at the same time.
        size: images in a request.
        seconds: measured.
        warm_up: seconds before.
    """
    bodies = _bodies(target, images, size)
    found = Measurement(seconds=seconds)
    lock = threading.Lock()
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    def client(number: int) -> None:
        position = number * len(bodies) // clients
        with closing(Client(target)) as connected:
            while (sent := time.perf_counter()) < end:
                try:
                    connected.ask(bodies[position % len(bodies)])
                except (OSError, http.client.HTTPException) as error:
                    with lock:
                        found.fail(error)
                    # A server that refuses at once is not asked again without a pause.
                    time.sleep(0.05)
                    continue
                finally:
                    position += 1
                answered = time.perf_counter()
                with lock:
                    found.images_all += size
                    if begin <= answered < end:
                        found.images += size
                        found.latencies_ms.append(round(1000 * (answered - sent), 2))

    _run_threads(clients, client)
    found.cpu_seconds = time.process_time()
    return found


def open_loop(
    target: Target,
    images: Sequence[bytes],
    *,
    rate: float,
    arrivals: Arrivals,
    size: int,
    seconds: float,
) -> Measurement:
    """Requests arrive whether or not earlier ones are answered, as those of many users do.

    A latency counts from the moment at which its request was to arrive, so that a late generator or
    full connections never hide a wait.

    Args:
        target: the server.
        images: taken in turn.
        rate: requests in a second.
        arrivals: at even distances, or independent of each other.
        size: images in a request.
        seconds: for how long requests arrive.
    """
    bodies = _bodies(target, images, size)
    schedule = arrival_times(rate, arrivals, seconds)
    found = Measurement()
    lock = threading.Lock()
    numbers = iter(range(len(schedule)))
    begin = time.perf_counter() + 0.05

    def connection(_: int) -> None:
        with closing(Client(target)) as connected:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                arrival = begin + schedule[number]
                time.sleep(max(0.0, arrival - time.perf_counter()))
                try:
                    connected.ask(bodies[number % len(bodies)])
                except (OSError, http.client.HTTPException) as error:
                    with lock:
                        found.fail(error)
                    continue
                with lock:
                    found.images += size
                    found.latencies_ms.append(round(1000 * (time.perf_counter() - arrival), 2))

    _run_threads(min(_OPEN_LOOP_CONNECTIONS, len(schedule)), connection)
    found.seconds = max(seconds, time.perf_counter() - begin)
    found.images_all = found.images
    found.cpu_seconds = time.process_time()
    return found


def arrival_times(rate: float, arrivals: Arrivals, seconds: float) -> list[float]:
    """Seconds from the start; the same each time."""
    if arrivals == "fixed":
        return [number / rate for number in range(max(1, int(rate * seconds)))]
    generator = random.Random(0)
    found: list[float] = []
    moment = generator.expovariate(rate)
    while moment < seconds or not found:
        found.append(moment)
        moment += generator.expovariate(rate)
    return found


def _bodies(target: Target, images: Sequence[bytes], size: int) -> list[list[Request]]:
    """Questions about each `size` images in turn."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--address", required=True, help="http://HOST:PORT")
    parser.add_argument("--path", action="append", required=True)
    parser.add_argument("--form", choices=("multipart", "raw"), default="multipart")
    parser.add_argument("--field", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--image-type", default="image/jpeg")
    parser.add_argument("--images", type=Path, required=True, help="folder")
    parser.add_argument("--size", type=int, default=1, help="images in a request")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds; closed loop")
    parser.add_argument("--rate", type=float, help="requests in a second: an open loop")
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson")
    options = parser.parse_args(arguments)
    target = Target(
        options.address,
        tuple(options.path),
        options.form,
        dict(entry.split("=", 1) for entry in options.field),
        options.image_type,
    )
    images = [path.read_bytes() for path in sorted(options.images.iterdir())]
    if options.rate is None:
        found = closed_loop(
            target,
            images,
            clients=options.clients,
            size=options.size,
            seconds=options.seconds,
            warm_up=options.warm_up,
        )
    else:
        found = open_loop(
            target,
            images,
            rate=options.rate,
            arrivals=options.arrivals,
            size=options.size,
            seconds=options.seconds,
        )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
