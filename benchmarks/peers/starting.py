"""Every alternative as a context: started, checked by its first right answer, and ended."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import started
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.addresses import free_ports
from torchserve_ensemble.serving.load import LoadClient, LoadTarget, encode

_START_SECONDS = 300
Labels = dict[str, list[str]]


@dataclass(frozen=True)
class Work:
    """What every alternative serves.

    Attributes:
        ensemble: its name.
        members: their names.
        image_type: media type of the images.
        folder: with the weights.
        batch_size: most requests, or images, that a server may compute at once.
        delay_ms: longest wait for a batch to fill.
        image: one image file.
        answer: the right labels for it.
    """

    ensemble: str
    members: tuple[str, ...]
    image_type: str
    folder: Path
    batch_size: int
    delay_ms: int
    image: bytes
    answer: Mapping[str, str]

    def environment(self, port: int) -> dict[str, str]:
        """For the services in Python: see `benchmarks.peers.members`."""
        return {
            "BENCHMARK_ENSEMBLE": self.ensemble,
            "BENCHMARK_FOLDER": str(self.folder),
            "BENCHMARK_BATCH_SIZE": str(self.batch_size),
            "BENCHMARK_DELAY_MS": str(self.delay_ms),
            "BENCHMARK_PORT": str(port),
        }


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        target: how to ask it.
        pid: its first process; all others are children of it.
        startup_seconds: from the launch to the first right answer.
    """

    target: LoadTarget
    pid: int
    startup_seconds: float


@dataclass(frozen=True)
class Alternative:
    """A way to serve the members.

    Attributes:
        name: for tables.
        start: starts it.
        ours: this project, and not a peer.
        float32: computes as the peers do, and not in reduced precision.
    """

    name: str
    start: Callable[[Work], AbstractContextManager[Running]]
    ours: bool = False
    float32: bool = True


@contextmanager
def service(
    work: Work,
    name: str,
    command: Callable[[int], Sequence[str]],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A server in Python under ``/predict``.

    Args:
        work: what it serves.
        name: of its log file.
        command: its command line for a port.
        environment: further variables.
    """
    (port,) = free_ports(1)
    target = LoadTarget(f"http://127.0.0.1:{port}", ("/predict",), image_type=work.image_type)
    log = work.folder / f"{name}.log"
    variables = work.environment(port) | dict(environment or {})
    launched = time.perf_counter()
    with started([sys.executable, *command(port)], log, variables) as process:
        wait_for_answer(work, target, lambda: process.poll() is None, log)
        yield Running(target, process.pid, time.perf_counter() - launched)


def flask(work: Work) -> AbstractContextManager[Running]:
    """As FlexServe's paper implies: one process, one request at a time."""

    def command(port: int) -> list[str]:
        found = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
        found += ["--threads", "1", "--timeout", "120"]
        return [*found, "benchmarks.peers.flask_service:application"]

    return service(work, "flask", command)


def litserve(work: Work) -> AbstractContextManager[Running]:
    """One worker, batches of requests."""
    return service(work, "litserve", lambda _: ["-m", "benchmarks.peers.litserve_service"])


def bentoml(work: Work) -> AbstractContextManager[Running]:
    """One service with adaptive batching."""
    variables = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(work.folder / "bentoml"),
        "PROMETHEUS_MULTIPROC_DIR": str(work.folder / "bentoml-metrics"),
    }
    return service(
        work,
        "bentoml",
        lambda port: [
            "-m",
            "bentoml",
            "serve",
            "benchmarks.peers.bentoml_service:Service",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        variables,
    )


def ray(work: Work) -> AbstractContextManager[Running]:
    """One replica with batching."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(work.folder / "ray"),
        # Ray would set OMP_NUM_THREADS to the replica's num_cpus.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    return service(work, "ray", lambda _: ["-m", "benchmarks.peers.ray_service"], variables)


def wait_for_answer(work: Work, target: LoadTarget, alive: Callable[[], bool], log: Path) -> None:
    """Ask until the first image's labels are right.

    Raises:
        RuntimeError: the process ended, the time ran out, or the labels are wrong.
    """
    deadline = time.monotonic() + _START_SECONDS
    request = encode(target, [work.image])
    reason = ""
    with closing(LoadClient(target)) as client:
        while alive() and time.monotonic() < deadline:
            try:
                found = labels_of(target, work.members, 1, client.ask(request))
            except (ServerError, ValueError) as error:
                reason = repr(error)
                time.sleep(0.1)
                continue
            wrong = [name for name in work.members if found[name] != [work.answer[name]]]
            # A member that hesitates between two labels must not stop the comparison.
            if len(wrong) > len(work.members) // 3:
                raise RuntimeError(f"wrong labels: {found} instead of {work.answer}")
            return
    said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    raise RuntimeError(f"no answer ({reason}); its log ends with:\n{said}")


def labels_of(
    target: LoadTarget, members: Sequence[str], count: int, answers: Sequence[bytes]
) -> Labels:
    """Each member's labels for each image.

    Args:
        target: what was asked.
        members: their names; with several paths, in that order.
        count: of images.
        answers: of `Client.ask`.

    Raises:
        ValueError: another form.
    """
    content = [json.loads(answer) for answer in answers]
    if target.form == "raw" and len(target.paths) == len(members) > 1:
        # Scores of one image by label, in the order of `encode`.
        return {
            name: [max(each, key=each.get) for each in content[i * count : (i + 1) * count]]
            for i, name in enumerate(members)
        }
    if target.form == "raw":
        return {name: [str(each[name]) for each in content] for name in members}
    (answer,) = content
    if isinstance(answer, list):
        return {name: [str(each[name]) for each in answer] for name in members}
    if isinstance(answer, dict) and set(members) <= set(answer):
        return {name: [str(label) for label in answer[name]] for name in members}
    raise ValueError(f"not understood: {str(answer)[:300]}")
