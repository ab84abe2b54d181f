"""Starts the other servers. Each is a context that waits for a right answer and ends the server."""

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

_MLSERVER_PYTHON = Path(__file__).parents[2] / ".venv-bench-mlserver" / "bin" / "python"
"""Python of MLServer's own virtual environment, which ``scripts/bench`` makes."""

Labels = dict[str, list[str]]


@dataclass(frozen=True)
class Work:
    """What every alternative has to serve.

    Attributes:
        ensemble: name of the ensemble.
        members: names of its members.
        image_type: media type of the images.
        folder: folder with the weights, into which logs are written.
        batch_size: largest number of requests, or images, that a server may compute at once.
        delay_ms: longest wait for a batch to fill.
        image: an image file with which a server is tried.
        answer: the right label of that image by member.
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
        """Make the environment variables from which `benchmarks.peers.members` reads its work."""
        return {
            "BENCHMARK_ENSEMBLE": self.ensemble,
            "BENCHMARK_FOLDER": str(self.folder),
            "BENCHMARK_BATCH_SIZE": str(self.batch_size),
            "BENCHMARK_DELAY_MS": str(self.delay_ms),
            "BENCHMARK_PORT": str(port),
        }


@dataclass(frozen=True)
class Running:
    """A server that is ready and has given a right answer.

    Attributes:
        target: where and how requests are sent.
        pid: first process of the server; all its other processes are children of it.
        startup_seconds: seconds from the launch to the first right answer.
    """

    target: LoadTarget
    pid: int
    startup_seconds: float


@dataclass(frozen=True)
class Alternative:
    """A way to serve the members.

    Attributes:
        name: name in tables.
        start: starts the server.
        ours: whether it is this project.
        float32: whether it computes in float32, as the other servers do, and not in reduced
            precision.
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
    python: str = sys.executable,
) -> Iterator[Running]:
    """Start a server in Python that answers under ``/predict``.

    Args:
        work: what it serves.
        name: name of its log file.
        command: makes Python's arguments for a port.
        environment: further environment variables.
        python: the Python that runs the server.
    """
    (port,) = free_ports(1)
    target = LoadTarget(f"http://127.0.0.1:{port}", ("/predict",), image_type=work.image_type)
    log = work.folder / f"{name}.log"
    variables = work.environment(port) | dict(environment or {})
    launched = time.perf_counter()
    with started([python, *command(port)], log, variables) as process:
        wait_for_answer(work, target, lambda: process.poll() is None, log)
        yield Running(target, process.pid, time.perf_counter() - launched)


def flask(work: Work) -> AbstractContextManager[Running]:
    """Start the Flask service with one process that computes one request at a time.

    FlexServe's paper (Verenich et al. 2020) implies this.
    """

    def command(port: int) -> list[str]:
        arguments = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
        arguments += ["--threads", "1", "--timeout", "120"]
        return [*arguments, "benchmarks.peers.flask_service:application"]

    return service(work, "flask", command)


def litserve(work: Work, openvino: str | None = None) -> AbstractContextManager[Running]:
    """Start LitServe with one worker, which computes batches of requests.

    Args:
        work: what it serves.
        openvino: the precision for OpenVINO, f32, bf16 or int8; None: torch, eager in float32.
    """
    variables = {} if openvino is None else {"BENCHMARK_OPENVINO": openvino}
    command = ["-m", "benchmarks.peers.litserve_service"]
    return service(work, f"litserve-{openvino or 'torch'}", lambda _: command, variables)


def mlserver(work: Work, openvino: str) -> AbstractContextManager[Running]:
    """Start MLServer with its model in the server's process, which computes batches of requests.

    Args:
        work: what it serves.
        openvino: the precision for OpenVINO, f32, bf16 or int8.
    """
    command = ["-m", "benchmarks.peers.mlserver_service"]
    variables = {"BENCHMARK_OPENVINO": openvino}
    python = str(_MLSERVER_PYTHON)
    return service(work, f"mlserver-{openvino}", lambda _: command, variables, python)


def bentoml(work: Work) -> AbstractContextManager[Running]:
    """Start BentoML with one service, which batches adaptively."""
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
    """Start Ray Serve with one replica, which batches images."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(work.folder / "ray"),
        # Without this Ray would set the number of threads to the replica's num_cpus.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    return service(work, "ray", lambda _: ["-m", "benchmarks.peers.ray_service"], variables)


def wait_for_answer(work: Work, target: LoadTarget, alive: Callable[[], bool], log: Path) -> None:
    """Send an image again and again until the server answers it, and check its labels.

    Args:
        work: has the image and its right labels.
        target: where and how the image is sent.
        alive: tells whether the server's process still runs.
        log: the server's log, whose end is quoted if no answer comes.

    Raises:
        RuntimeError: the process ended, the time ran out, or the labels are wrong.
    """
    deadline = time.monotonic() + _START_SECONDS
    request = encode(target, [work.image])
    reason = ""
    with closing(LoadClient(target)) as client:
        while alive() and time.monotonic() < deadline:
            try:
                labels = labels_of(target, work.members, 1, client.ask(request))
            except (ServerError, ValueError) as error:
                reason = repr(error)
                time.sleep(0.1)
                continue
            wrong = [name for name in work.members if labels[name] != [work.answer[name]]]
            # One member in three may be wrong: its two best scores may be nearly equal.
            if len(wrong) > len(work.members) // 3:
                raise RuntimeError(f"wrong labels: {labels} instead of {work.answer}")
            return
    end_of_log = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    raise RuntimeError(f"no answer ({reason}); its log ends with:\n{end_of_log}")


def labels_of(
    target: LoadTarget, members: Sequence[str], count: int, answers: Sequence[bytes]
) -> Labels:
    """Read each member's label for each image from a server's answers.

    Args:
        target: where and how the images were sent.
        members: names of the members, in the order of the paths if there is a path for each.
        count: number of images.
        answers: bodies of the answers, from `LoadClient.ask`.

    Raises:
        ValueError: the answer has none of the formats of the servers in this package.
    """
    content = [json.loads(answer) for answer in answers]
    if target.form == "raw" and len(target.paths) == len(members) > 1:
        # Each answer has the scores of one image by label. The answers are in the order of the
        # requests, which `encode` made path by path.
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
