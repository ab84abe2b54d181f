"""Images per second and latency of servers with the same members, side by side in one run.

Every alternative is up at once and they take turns, so that a noisy machine is noisy for all.
Before anything is timed all must give the same labels. Run it with ``scripts/bench``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
import torch
from PIL import Image

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, free_ports, throw_away

from .ensembles import MEMBERS, images, module, transform, write

LOADS = ((1, 1), (8, 1), (32, 1), (4, 8))
"""(clients, images in a request)."""

_EQUAL = 0.85
"""Share of labels that must be those of the loop.

Untrained members amplify a difference of one level of 255, which two correct decoders and resizers
may have, to another label for some images; one that did other work would agree on one in ten.
"""

Ask = Callable[[requests.Session, Sequence[bytes]], dict[str, list[str]]]


@dataclass(frozen=True)
class Alternative:
    """One server, or none.

    Attributes:
        name: for the table.
        ask: sends images, gives each member's labels.
        most: images that a request may have.
        pids: of the server, to add up memory; empty for the loop without a server.
    """

    name: str
    ask: Ask
    most: int = 1000
    pids: tuple[int, ...] = ()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the result as JSON too")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = images(64)
        alternatives = start_all(stack, folder)
        check_equal(alternatives, files)
        found = measure(alternatives, files, options.seconds, options.rounds)
        memory = {a.name: _memory(a.pids) for a in alternatives if a.pids}
    report(found, memory)
    if options.output is not None:
        content = {"machine": machine(), "memory_mb": memory, "results": found}
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def start_all(stack: ExitStack, folder: Path) -> list[Alternative]:
    """Every alternative, ready."""
    specs = [write(folder, precision) for precision in ("float32", "auto")]
    store = folder / "store"
    for spec in specs:
        build_archive(spec, store)
    names = ("three-float32-1.0.mar", "three-auto-1.0.mar")
    settings = ServerSettings(store, names, overrides=throw_away())
    ours = stack.enter_context(Server.start(settings, folder / "run"))
    versions = {version.name: version for version in ours.wait_ready()}
    found = [Alternative("loop without server, float32", _loop(folder))]
    for name in ("three-float32", "three-auto"):
        worker = versions[name].workers[0].pid
        label = f"torchserve-ensemble, {name.removeprefix('three-')}"
        address = f"{ours.inference_address}/predictions/{name}"
        found.append(Alternative(label, _ours(address), pids=(worker,)))
    found.append(stack.enter_context(_flask(folder)))
    found.append(stack.enter_context(_stock(folder)))
    return found


def _loop(folder: Path) -> Ask:
    """The members in this process; requests take turns."""
    models = {name: module(name, folder) for name in MEMBERS}
    preprocess, turn = transform(), threading.Lock()

    def ask(session: requests.Session, files: Sequence[bytes]) -> dict[str, list[str]]:
        with turn, torch.inference_mode():
            opened = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
            batch = torch.stack([preprocess(image) for image in opened])
            labels = {name: model(batch).argmax(dim=1).tolist() for name, model in models.items()}
        return {name: [str(label) for label in each] for name, each in labels.items()}

    return ask


def _ours(address: str) -> Ask:
    def ask(session: requests.Session, files: Sequence[bytes]) -> dict[str, list[str]]:
        parts = [("file", ("a.jpg", file, "image/jpeg")) for file in files]
        answer = session.post(address, files=parts, data={"response": "flexserve"}, timeout=120)
        answer.raise_for_status()
        labels: dict[str, list[str]] = answer.json()
        return labels

    return ask


def _form(address: str) -> Ask:
    def ask(session: requests.Session, files: Sequence[bytes]) -> dict[str, list[str]]:
        parts = [("file", ("a.jpg", file, "image/jpeg")) for file in files]
        answer = session.post(address, files=parts, timeout=120)
        answer.raise_for_status()
        labels: dict[str, list[str]] = answer.json()
        return labels

    return ask


@contextmanager
def _process(command: Sequence[str], folder: Path, url: str) -> Iterator[tuple[int, ...]]:
    """A server process, ready when it answers at all; ended with all its children."""
    environment = os.environ | {"BENCHMARK_FOLDER": str(folder)}
    log = (folder / f"{Path(command[-1]).name}.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(url, timeout=5)
                break
            except requests.RequestException:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        yield (process.pid, *(child.pid for child in family))
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        for each in (*family, psutil.Process(process.pid)):
            each.terminate()
        process.wait(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=10)
        for each in alive:
            each.kill()


@contextmanager
def _flask(folder: Path) -> Iterator[Alternative]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    command += ["--threads", "1", "--timeout", "120", "benchmarks.flask_service:application"]
    address = f"http://127.0.0.1:{port}"
    with _process(command, folder, address) as pids:
        yield Alternative(
            "Flask and gunicorn (as FlexServe)", _form(f"{address}/predict"), pids=pids
        )


@contextmanager
def _stock(folder: Path) -> Iterator[Alternative]:
    """TorchServe's own image_classifier, one endpoint for each member; the client asks all."""
    store = folder / "stock"
    store.mkdir()
    config = folder / "model-config.yaml"
    config.write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 5\n"
        "responseTimeout: 60\nstartupTimeout: 180\n"
    )
    for name in MEMBERS:
        script = torch.jit.trace(module(name, folder), torch.rand(2, 3, 224, 224))
        script.save(str(folder / f"{name}.pt"))
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name]
        command += ["--version", "1.0", "--serialized-file", str(folder / f"{name}.pt")]
        command += ["--handler", "image_classifier", "--export-path", str(store)]
        command += ["--config-file", str(config)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    models = tuple(f"{name}.mar" for name in MEMBERS)
    settings = ServerSettings(store, models, overrides=throw_away())
    with Server.start(settings, folder / "stock-run") as server:
        versions = server.wait_ready()
        address = server.inference_address

        def ask(session: requests.Session, files: Sequence[bytes]) -> dict[str, list[str]]:
            labels: dict[str, list[str]] = {}

            def one(name: str) -> None:
                answer = requests.post(f"{address}/predictions/{name}", data=files[0], timeout=120)
                answer.raise_for_status()
                scores = answer.json()
                labels[name] = [max(scores, key=scores.__getitem__)]

            threads = [threading.Thread(target=one, args=(name,)) for name in MEMBERS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return labels

        pids = tuple(worker.pid for version in versions for worker in version.workers)
        yield Alternative("stock TorchServe, an endpoint each", ask, most=1, pids=pids)


def check_equal(alternatives: Sequence[Alternative], files: Sequence[bytes]) -> None:
    """All alternatives give the loop's labels, as far as `_EQUAL` says."""
    with requests.Session() as session:
        expected = [alternatives[0].ask(session, [file]) for file in files]
        for alternative in alternatives[1:]:
            found = [alternative.ask(session, [file]) for file in files]
            pairs = [
                (a[n][0], b[n][0]) for a, b in zip(expected, found, strict=True) for n in MEMBERS
            ]
            equal = sum(first == second for first, second in pairs) / len(pairs)
            print(f"{alternative.name}: {equal:.1%} of the labels are those of the loop")
            if equal < _EQUAL:
                raise SystemExit(f"{alternative.name} answers otherwise; nothing is timed")


def measure(
    alternatives: Sequence[Alternative], files: Sequence[bytes], seconds: float, rounds: int
) -> list[dict[str, object]]:
    """Every alternative under every load, in turns."""
    found: dict[tuple[str, int, int], list[tuple[float, list[float]]]] = {}
    for _ in range(rounds):
        for clients, size in LOADS:
            for alternative in alternatives:
                if size <= alternative.most:
                    result = _closed_loop(alternative, files, clients, size, seconds)
                    found.setdefault((alternative.name, clients, size), []).append(result)
    return [
        {
            "alternative": name,
            "clients": clients,
            "images_per_request": size,
            "images_per_second": [round(rate, 2) for rate, _ in results],
            "p50_ms": round(1000 * statistics.median(t for _, times in results for t in times), 1),
            "p99_ms": round(1000 * _p99([t for _, times in results for t in times]), 1),
        }
        for (name, clients, size), results in found.items()
    ]


def _closed_loop(
    alternative: Alternative, files: Sequence[bytes], clients: int, size: int, seconds: float
) -> tuple[float, list[float]]:
    """Images per second, and seconds of each request."""
    times: list[float] = []
    start = time.perf_counter()
    end = start + seconds

    def client(number: int) -> None:
        with requests.Session() as session:
            position = number
            while time.perf_counter() < end:
                chosen = [files[(position + i) % len(files)] for i in range(size)]
                position += size
                began = time.perf_counter()
                alternative.ask(session, chosen)
                times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) * size / (time.perf_counter() - start), times


def _p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * (len(times) - 1))]


def _memory(pids: Sequence[int]) -> float:
    """Megabytes of a server's model processes, shared pages by their share (PSS)."""
    return round(sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 1e6, 1)


def machine() -> dict[str, object]:
    """What was measured on."""
    packages = ("torch", "torchvision", "torchserve", "flask", "gunicorn")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def report(found: Sequence[dict[str, object]], memory: dict[str, float]) -> None:
    """One table for each load."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    for clients, size in LOADS:
        table = Table(title=f"{clients} clients, {size} image(s) in a request")
        for column in ("alternative", "images/s (median)", "spread", "p50 ms", "p99 ms"):
            table.add_column(column, justify="left" if column == "alternative" else "right")
        for row in found:
            if (row["clients"], row["images_per_request"]) == (clients, size):
                rates = row["images_per_second"]
                assert isinstance(rates, list)
                spread = f"{min(rates):.1f}-{max(rates):.1f}"
                cells = [
                    f"{statistics.median(rates):.1f}",
                    spread,
                    f"{row['p50_ms']}",
                    f"{row['p99_ms']}",
                ]
                table.add_row(str(row["alternative"]), *cells)
        console.print(table)
    for name, megabytes in memory.items():
        console.print(f"memory of the model processes (PSS), {name}: {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
