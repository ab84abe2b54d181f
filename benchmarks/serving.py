"""Measures the speed, latency, CPU time and memory of servers that serve the same members.

The servers take turns under every load, so that other programs on the machine disturb all of them
alike. A server is measured only if its labels equal those of a plain loop over the members. Run it
with ``scripts/bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torchserve_ensemble.serving.load import LoadClient, LoadMeasurement, encode

from . import machine, report
from .ensembles import ENSEMBLES, Ensemble
from .load import arguments_of
from .peers import starting, stock, torchserve
from .peers.members import rows
from .peers.starting import Alternative, Running, Work
from .processes import Memory, MemoryWatch, cpu_seconds
from .report import BASELINE, Load, Measurements, Result, Server

LOADS = (Load(1, 1), Load(8, 1), Load(32, 1), Load(4, 8))
"""The closed loops, each with a number of clients and a number of images in a request."""

RESULTS = Path(__file__).parent / "results"

_MIN_EQUAL_LABELS = 0.97
"""Share of labels that must equal those of the plain loop.

Pixels of two correct resizers differ by one of 255 levels, which may change a label now and then.
"""

_NUM_IMAGES = 64
"""Number of different images that the load generator sends, and of samples for the build."""

_RATE_GROWTH = 1.4
"""Each rate of the open loop is this many times the rate before."""

OURS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "default": ("ours, no settings (float32)", {}),
    "auto": ("ours, precision: auto", {"precision": "auto"}),
    "bfloat16": ("ours, precision: bfloat16", {"precision": "bfloat16", "tolerance": 0.1}),
    "int8": ("ours, precision: int8", {"precision": "int8", "tolerance": 0.1}),
    "torch": ("ours, engine: torch (float32)", {"engine": "torch"}),
}
"""This project's alternatives: name on the command line -> name in tables, and the spec's settings
under ``runtime``."""

PEERS: Mapping[str, Alternative] = {
    "flexserve": Alternative(BASELINE, starting.flask),
    "litserve": Alternative("LitServe", starting.litserve),
    "litserve-f32": Alternative(
        "LitServe with OpenVINO, float32", partial(starting.litserve, openvino="f32")
    ),
    "litserve-bf16": Alternative(
        "LitServe with OpenVINO, bfloat16",
        partial(starting.litserve, openvino="bf16"),
        float32=False,
    ),
    "litserve-int8": Alternative(
        "LitServe with OpenVINO, int8", partial(starting.litserve, openvino="int8"), float32=False
    ),
    "mlserver-f32": Alternative(
        "MLServer with OpenVINO, float32", partial(starting.mlserver, openvino="f32")
    ),
    "mlserver-bf16": Alternative(
        "MLServer with OpenVINO, bfloat16",
        partial(starting.mlserver, openvino="bf16"),
        float32=False,
    ),
    "bentoml": Alternative("BentoML", starting.bentoml),
    "ray": Alternative("Ray Serve", starting.ray),
    "stock": Alternative("TorchServe, an endpoint each", stock.endpoints),
    "workflow": Alternative("TorchServe workflow", stock.workflow),
}
"""The other servers, by their names on the command line."""


def main() -> None:
    """Measure all alternatives, print the result and write it to files."""
    options = arguments()
    # SIGTERM becomes an exception, as an interrupt is, so that every context ends its server. The
    # exit status is the usual one, 128 plus the signal's number.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A worker refuses to load if this variable puts other code before the archive's.
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        result = run(options, Path(temporary))
    report.show(result)
    stem = report.write(result, options.output)
    # Imported here: matplotlib takes a second, and the measurements do not need it.
    from . import plots

    plots.draw(result, stem.with_suffix(".svg"))
    print(f"written: {stem.name}.json, .md and .svg")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--ensemble", choices=ENSEMBLES, default="three")
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds before each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*OURS, *PEERS],
        default=[*OURS, *PEERS],
        metavar="NAME",
        help=f"alternatives to measure, instead of all: {', '.join([*OURS, *PEERS])}",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="requests in a batch of this project"
    )
    # Larger batches do not make a plain loop faster: its activations no longer fit the cache.
    parser.add_argument(
        "--peer-batch-size", type=int, default=8, help="requests in a batch of the other servers"
    )
    parser.add_argument("--delay-ms", type=int, default=5, help="longest wait for a batch to fill")
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="start each server for its turn only; needs less memory, and no idle server disturbs",
    )
    parser.add_argument(
        "--open-loop",
        action="store_true",
        help="also send requests at rising rates, until the 99th percentile exceeds --p99-ms",
    )
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson")
    parser.add_argument(
        "--p99-ms", type=float, default=250, help="limit of latency for the open loop"
    )
    parser.add_argument(
        "--first-rate", type=float, default=4, help="requests in a second to begin with"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="also measure the members without a server"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the files")
    return parser.parse_args()


def run(options: argparse.Namespace, folder: Path) -> Result:
    """Measure all alternatives.

    Args:
        options: the command line's options.
        folder: an empty folder for weights, archives, images and logs.
    """
    ensemble = ENSEMBLES[options.ensemble]
    print("making weights and archives", flush=True)
    ensemble.write_weights(folder)
    images = write_images(ensemble, folder)
    expected = loop_labels(ensemble, folder, images)
    work = Work(
        ensemble.name,
        ensemble.members,
        ensemble.image_type,
        folder,
        options.peer_batch_size,
        options.delay_ms,
        images[0],
        expected[0],
    )
    ours = replace(work, batch_size=options.batch_size)
    alternatives = [prepare(key, work if key in PEERS else ours) for key in options.only]
    turns = Turns(options, work, images, expected, alternatives)
    turns.run()
    in_process = inprocess(ensemble, folder, min(1, options.seconds)) if options.in_process else []
    names = ("seconds", "rounds", "batch_size", "peer_batch_size", "delay_ms", "one_at_a_time")
    return Result(
        ensemble=ensemble.name,
        machine=machine.machine(),
        versions=machine.versions(),
        settings={name: getattr(options, name) for name in names},
        servers=[turns.servers[each.name] for each in alternatives],
        measurements=list(turns.measurements.values()),
        in_process=in_process,
    )


def write_images(ensemble: Ensemble, folder: Path) -> list[bytes]:
    """Write images for the load generator, and others as samples for the build.

    Returns:
        The images that the load generator sends.
    """
    for name, seed in (("images", 1), ("samples", 2)):
        (folder / name).mkdir()
        for number, image in enumerate(ensemble.images(_NUM_IMAGES, seed)):
            (folder / name / f"{number:03}").write_bytes(image)
    return ensemble.images(_NUM_IMAGES, 1)


def loop_labels(ensemble: Ensemble, folder: Path, images: Sequence[bytes]) -> list[dict[str, str]]:
    """Compute the labels of all members in a plain loop.

    Returns:
        For each image the label by member.
    """
    import torch

    labels = ensemble.labels
    labels_of: dict[str, list[str]] = {}
    with torch.inference_mode():
        batch = ensemble.batch(images)
        for name in ensemble.members:
            positions = ensemble.load(name, folder)(batch).argmax(dim=1).tolist()
            labels_of[name] = [labels[position] for position in positions]
    return rows(labels_of)


def prepare(key: str, work: Work) -> Alternative:
    """Make an alternative ready to be started; for this project's own, build the archive."""
    if key in PEERS:
        return PEERS[key]
    name, runtime = OURS[key]
    endpoint = f"{work.ensemble}-{key}"
    torchserve.build_ours(work, endpoint, work.folder / "samples", **runtime)
    start = partial(torchserve.ours, name=endpoint)
    return Alternative(name, start, ours=True, float32="precision" not in runtime)


def inprocess(ensemble: Ensemble, folder: Path, seconds: float) -> list[dict[str, object]]:
    """Run `benchmarks.inprocess` in a process of its own, and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.inprocess", ensemble.name, "--folder", str(folder)]
    command += [
        "--seconds",
        str(seconds),
        "--archives",
        *(str(path) for path in sorted((folder / "store").glob("*.mar"))),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    results: list[dict[str, object]] = json.loads(done.stdout)
    return results


class Turns:
    """Measures the alternatives in turn under every load, in several rounds.

    Attributes:
        servers: name of each alternative -> its measurements apart from speed.
        measurements: name of the alternative and load -> the measurements under that load.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        work: Work,
        images: Sequence[bytes],
        expected: Sequence[Mapping[str, str]],
        alternatives: Sequence[Alternative],
    ) -> None:
        self._options = options
        self._work = work
        self._images = images
        self._expected = expected
        self._alternatives = alternatives
        self.servers = {a.name: Server(a.name, a.ours, a.float32) for a in alternatives}
        self.measurements: dict[tuple[str, Load], Measurements] = {}

    def run(self) -> None:
        """Measure all rounds."""
        if self._options.one_at_a_time:
            for number in range(self._options.rounds):
                for alternative in self._in_order(number):
                    with ExitStack() as stack:
                        running = self._start(stack, alternative)
                        for load in LOADS if running is not None else ():
                            self._closed(alternative, running, load)
                        if number == 0 and running is not None:
                            self._open(alternative, running)
            return
        with ExitStack() as stack:
            started = {a.name: self._start(stack, a) for a in self._alternatives}
            for number in range(self._options.rounds):
                for load in LOADS:
                    for alternative in self._in_order(number):
                        self._closed(alternative, started[alternative.name], load)
            for alternative in self._alternatives:
                self._open(alternative, started[alternative.name])

    def _in_order(self, number: int) -> list[Alternative]:
        """Order the alternatives for a round; each round begins with another alternative."""
        first = number % max(1, len(self._alternatives))
        return [*self._alternatives[first:], *self._alternatives[:first]]

    def _start(self, stack: ExitStack, alternative: Alternative) -> Running | None:
        """Start an alternative and compare its labels with those of the plain loop.

        A server that does not start, or answers differently, is left out; the others are measured.

        Returns:
            The running server; None if it is left out.
        """
        server = self.servers[alternative.name]
        if server.problem:
            return None
        print(f"starting {alternative.name}", flush=True)
        try:
            running = stack.enter_context(alternative.start(self._work))
            server.equal_labels = self._share_of_equal_labels(running)
        except Exception as error:
            print(f"{alternative.name}: {error}", file=sys.stderr, flush=True)
            server.problem = f"not measured: {type(error).__name__}"
            return None
        server.startup_seconds.append(round(running.startup_seconds, 2))
        print(
            f"  first right answer after {running.startup_seconds:.1f} s, "
            f"{server.equal_labels:.1%} of the labels are those of the plain loop",
            flush=True,
        )
        if server.equal_labels < _MIN_EQUAL_LABELS:
            server.problem = f"not measured: {server.equal_labels:.1%} equal labels"
            return None
        return running

    def _share_of_equal_labels(self, running: Running) -> float:
        """Compute the share of a server's labels that equal those of the plain loop.

        All images are sent twice: one in a request, and eight in a request.
        """
        target, members = running.target, self._work.members
        equal = []
        with closing(LoadClient(target)) as client:
            for size in (1, 8):
                for start in range(0, len(self._images), size):
                    part = self._images[start : start + size]
                    answers = client.ask(encode(target, part))
                    labels = starting.labels_of(target, members, len(part), answers)
                    for offset, expected in enumerate(self._expected[start : start + size]):
                        equal += [labels[name][offset] == expected[name] for name in members]
        return statistics.mean(equal)

    def _closed(self, alternative: Alternative, running: Running | None, load: Load) -> None:
        """Measure one closed loop, unless the alternative is left out."""
        if running is not None:
            options = ["--clients", str(load.clients), "--warm-up", str(self._options.warm_up)]
            self._measure(alternative, running, load, options)

    def _open(self, alternative: Alternative, running: Running | None) -> None:
        """Measure rising rates, until the slowest answers come too late or requests fail."""
        if running is None or not self._options.open_loop:
            return
        rate = self._options.first_rate
        while True:
            load = Load(0, 1, round(rate, 1))
            options = ["--rate", str(load.rate), "--arrivals", self._options.arrivals]
            measurements = self._measure(alternative, running, load, options)
            p99_ms = measurements.percentile(0.99)
            if p99_ms is None or p99_ms > self._options.p99_ms or measurements.errors:
                return
            rate *= _RATE_GROWTH

    def _measure(
        self, alternative: Alternative, running: Running, load: Load, options: Sequence[str]
    ) -> Measurements:
        """Send a load to a server from a process of its own, and add its measurement.

        Args:
            alternative: the alternative.
            running: its server.
            load: the load.
            options: further options of `benchmarks.load`.
        """
        seconds = self._options.seconds
        command = [sys.executable, "-m", "benchmarks.load", *arguments_of(running.target), *options]
        command += ["--images", str(self._work.folder / "images"), "--size", str(load.size)]
        command += ["--seconds", str(seconds)]
        seconds_before = cpu_seconds(running.pid)
        with MemoryWatch(running.pid, max(0.5, seconds / 3)) as watch:
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        seconds_used = cpu_seconds(running.pid) - seconds_before
        measured = LoadMeasurement(**json.loads(done.stdout))
        server = self.servers[alternative.name]
        server.memory = server.memory.peak(watch.peak).peak(Memory.of(running.pid))
        key = (alternative.name, load)
        measurements = self.measurements.setdefault(key, Measurements(alternative.name, load))
        measurements.add(measured, seconds_used)
        print(
            f"{alternative.name}, {load}: {measurements.images_per_second[-1]:.1f} images/s"
            + (f", errors: {asdict(measured)['errors']}" if measured.errors else ""),
            flush=True,
        )
        return measurements


if __name__ == "__main__":
    main()
