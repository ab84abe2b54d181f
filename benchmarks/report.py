"""Holds the measurements of a benchmark run, and writes them as tables and files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torchserve_ensemble.serving.load import LoadMeasurement, percentile

from .machine import describe
from .processes import Memory

BASELINE = "FlexServe-like (Flask)"
"""Name of the server with which this project is compared in a column of its own."""


@dataclass(frozen=True)
class Load:
    """The requests that are sent to a server: a closed loop, or an open loop if there is a rate.

    Attributes:
        clients: number of clients that each send one request after another; 0 for an open loop.
        size: images in a request.
        rate: requests in a second for an open loop; None for a closed loop.
    """

    clients: int
    size: int
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s of {self.size} image(s)"
        return f"{self.clients} client(s) x {self.size} image(s)"


@dataclass
class Measurements:
    """The measurements of one alternative under one load, over all rounds.

    Attributes:
        alternative: name of the alternative.
        load: the load.
        images_per_second: images that were answered per second, one number for each round.
        latencies_ms: latencies of all requests of all rounds.
        cpu_ms: user and system time of the server per image, one number for each round.
        errors: reason -> number of requests that failed for it.
    """

    alternative: str
    load: Load
    images_per_second: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, measured: LoadMeasurement, cpu_seconds: float) -> None:
        """Add the measurement of a round.

        Args:
            measured: what the load generator measured.
            cpu_seconds: user and system time that the server used during the round.
        """
        self.images_per_second.append(round(measured.images_per_second, 2))
        self.latencies_ms += measured.latencies_ms
        if measured.images_all:
            self.cpu_ms.append(round(1000 * cpu_seconds / measured.images_all, 2))
        for reason, count in measured.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count

    @property
    def rate(self) -> float:
        """Median of the rounds' images per second."""
        return statistics.median(self.images_per_second)

    @property
    def spread(self) -> tuple[float, float]:
        """Images per second of the slowest and of the fastest round."""
        return min(self.images_per_second), max(self.images_per_second)

    def percentile(self, share: float) -> float | None:
        """Compute a percentile of the latencies, in ms; None if no request was answered."""
        return percentile(self.latencies_ms, share)

    def summary(self) -> dict[str, object]:
        """Summarise the measurements for JSON, without the latencies of single requests."""
        return {
            "alternative": self.alternative,
            **asdict(self.load),
            "images_per_second": self.images_per_second,
            "median_images_per_second": self.rate,
            "requests": len(self.latencies_ms),
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
            "cpu_ms_per_image": statistics.median(self.cpu_ms) if self.cpu_ms else None,
            "errors": self.errors,
        }


@dataclass
class Server:
    """The measurements of one alternative's server, apart from its speed.

    Attributes:
        alternative: name of the alternative.
        ours: whether it is this project.
        float32: whether it computes in float32, as the other servers do.
        startup_seconds: seconds from the launch to the first right answer, for each start.
        memory: largest memory under any load.
        equal_labels: share of labels that equal those of a plain loop over the members.
        problem: the reason why the alternative was not measured; empty if it was.
    """

    alternative: str
    ours: bool
    float32: bool
    startup_seconds: list[float] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    equal_labels: float = 0
    problem: str = ""


@dataclass
class Result:
    """Everything that a run of the benchmark measured.

    Attributes:
        ensemble: name of the ensemble.
        machine: description of the machine.
        versions: versions of all installed packages.
        settings: options of the run.
        servers: one for each alternative.
        measurements: one for each alternative and load.
        in_process: results of `benchmarks.inprocess`; empty if it did not run.
    """

    ensemble: str
    machine: dict[str, object]
    versions: dict[str, str]
    settings: dict[str, object]
    servers: list[Server]
    measurements: list[Measurements]
    in_process: list[dict[str, object]] = field(default_factory=list)

    @property
    def loads(self) -> list[Load]:
        """All loads, in the order of measurement."""
        return list(dict.fromkeys(each.load for each in self.measurements))

    def under(self, load: Load) -> list[Measurements]:
        """Select the measurements of all alternatives under a load."""
        return [each for each in self.measurements if each.load == load]

    def ratios(self) -> list[dict[str, object]]:
        """Divide our images per second by those of the other servers, for each closed loop.

        Returns:
            For each closed loop and each of our alternatives: the load, our name, the fastest other
            server that computes in float32, and the ratios to this server and to `BASELINE`. A
            ratio is None if the other server was not measured.
        """
        servers = {server.alternative: server for server in self.servers}
        ratios: list[dict[str, object]] = []
        for load in self.loads:
            if load.rate is not None:
                continue
            rates = {each.alternative: each.rate for each in self.under(load)}
            peers = {n: r for n, r in rates.items() if not servers[n].ours and servers[n].float32}
            best = max(peers, key=peers.__getitem__, default=None)
            for name, rate in rates.items():
                if servers[name].ours:
                    ratios.append(
                        {
                            "load": str(load),
                            "ours": name,
                            "best_peer": best,
                            "to_best_peer": _ratio(rate, peers.get(best or "")),
                            "to_flexserve": _ratio(rate, rates.get(BASELINE)),
                        }
                    )
        return ratios


def _ratio(first: float, second: float | None) -> float | None:
    """Divide two rates; None if the second is missing or 0."""
    return round(first / second, 2) if second else None


def write(result: Result, folder: Path) -> Path:
    """Write a JSON and a Markdown file, named after date and ensemble.

    Returns:
        The path of both files without its suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{result.machine['date']}-{result.ensemble}"
    content = {
        "ensemble": result.ensemble,
        "machine": result.machine,
        "settings": result.settings,
        "servers": [asdict(server) for server in result.servers],
        # The results of earlier runs have this key, and can be compared with new ones.
        "figures": [each.summary() for each in result.measurements],
        "ratios": result.ratios(),
        "in_process": result.in_process,
        "versions": result.versions,
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    return stem


def markdown(result: Result) -> str:
    """Write all tables of a run as Markdown."""
    lines = [f"# {result.ensemble}", "", describe(result.machine), ""]
    settings = ", ".join(f"{key}: {value}" for key, value in result.settings.items())
    lines += [settings, ""]
    for title, header, body in tables(result):
        lines += [f"## {title}", "", _row(header), _row(["---"] * len(header))]
        lines += [*(_row(row) for row in body), ""]
    return "\n".join(lines)


def show(result: Result) -> None:
    """Print all tables of a run on the terminal."""
    console = Console(width=120)
    for title, header, body in tables(result):
        table = Table(title=title)
        for number, column in enumerate(header):
            table.add_column(column, justify="right" if number else "left")
        for row in body:
            table.add_row(*row)
        console.print(table)


Rows = list[list[str]]


def tables(result: Result) -> list[tuple[str, list[str], Rows]]:
    """Make title, header and rows of every table of a run."""
    tables: list[tuple[str, list[str], Rows]] = []
    header = ["alternative", "images/s", "slowest-fastest", "p50 ms", "p99 ms", "CPU ms/image"]
    for load in result.loads:
        body = [_measurements_row(each) for each in result.under(load)]
        tables.append((str(load), [*header, "errors"], body))
    ratios = [
        [
            str(each["load"]),
            str(each["ours"]),
            f"{_text(each['to_best_peer'])} ({each['best_peer']})",
            _text(each["to_flexserve"]),
        ]
        for each in result.ratios()
    ]
    if ratios:
        header = ["load", "ours", "times the best float32 peer", "times FlexServe-like"]
        tables.append(("Images per second, ratios", header, ratios))
    header = ["alternative", "start s", "memory MB", "without Java", "equal labels"]
    body = [_server_row(server) for server in result.servers]
    tables.append(("Servers", header, body))
    if result.in_process:
        header = ["in one process", "batch", "ms"]
        body = [[str(r["what"]), str(r["batch"]), _text(r["ms"])] for r in result.in_process]
        tables.append(("Without a server", header, body))
    return tables


def _measurements_row(each: Measurements) -> list[str]:
    """Write the measurements of an alternative under one load as a row."""
    low, high = each.spread
    return [
        each.alternative,
        f"{each.rate:.1f}",
        f"{low:.1f}-{high:.1f}",
        _text(each.percentile(0.5)),
        _text(each.percentile(0.99)),
        _text(statistics.median(each.cpu_ms) if each.cpu_ms else None),
        str(sum(each.errors.values())),
    ]


def _server_row(server: Server) -> list[str]:
    """Write start-up time, memory and equal labels of an alternative as a row."""
    if server.problem:
        return [server.alternative, server.problem, "", "", ""]
    return [
        server.alternative,
        _text(statistics.median(server.startup_seconds) if server.startup_seconds else None),
        f"{server.memory.total:.0f}",
        f"{server.memory.without_java:.0f}",
        f"{server.equal_labels:.1%}",
    ]


def _text(value: object) -> str:
    """Write a number with two decimals; a dash if it is None."""
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


def _row(cells: Sequence[str]) -> str:
    """Write a row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
