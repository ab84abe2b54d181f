"""Figures, ratios, tables and files of a run."""

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


@dataclass(frozen=True)
class Load:
    """A closed loop of clients, or with a rate an open one."""

    clients: int
    size: int
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s of {self.size} image(s)"
        return f"{self.clients} client(s) x {self.size} image(s)"


@dataclass
class Figures:
    """One alternative under one load, over all rounds.

    Attributes:
        alternative: its name.
        load: what it was under.
        images_per_second: of each round.
        latencies_ms: of all requests.
        cpu_ms: the server's user and system time for an image, of each round.
        errors: requests without an answer.
    """

    alternative: str
    load: Load
    images_per_second: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, measured: LoadMeasurement, cpu_seconds: float) -> None:
        """Take in a round."""
        self.images_per_second.append(round(measured.images_per_second, 2))
        self.latencies_ms += measured.latencies_ms
        if measured.images_all:
            self.cpu_ms.append(round(1000 * cpu_seconds / measured.images_all, 2))
        for reason, count in measured.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count

    @property
    def rate(self) -> float:
        """Median of the rounds, images per second."""
        return statistics.median(self.images_per_second)

    @property
    def spread(self) -> tuple[float, float]:
        """Slowest and fastest round."""
        return min(self.images_per_second), max(self.images_per_second)

    def percentile(self, share: float) -> float | None:
        """Of the latencies, in ms."""
        return percentile(self.latencies_ms, share)

    def summary(self) -> dict[str, object]:
        """For JSON; the single latencies are left out."""
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
    """What an alternative takes as a whole."""

    alternative: str
    ours: bool
    float32: bool
    startup_seconds: list[float] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    equal_labels: float = 0
    problem: str = ""


@dataclass
class Result:
    """A run."""

    ensemble: str
    machine: dict[str, object]
    versions: dict[str, str]
    settings: dict[str, object]
    servers: list[Server]
    figures: list[Figures]
    in_process: list[dict[str, object]] = field(default_factory=list)

    @property
    def loads(self) -> list[Load]:
        """In the order of measurement."""
        return list(dict.fromkeys(each.load for each in self.figures))

    def of(self, load: Load) -> list[Figures]:
        """All alternatives under a load."""
        return [each for each in self.figures if each.load == load]

    def ratios(self) -> list[dict[str, object]]:
        """For each closed loop: ours, and how many times the peers' images per second that is."""
        servers = {server.alternative: server for server in self.servers}
        found: list[dict[str, object]] = []
        for load in self.loads:
            if load.rate is not None:
                continue
            rates = {each.alternative: each.rate for each in self.of(load)}
            peers = {n: r for n, r in rates.items() if not servers[n].ours and servers[n].float32}
            best = max(peers, key=peers.__getitem__, default=None)
            for name, rate in rates.items():
                if servers[name].ours:
                    found.append(
                        {
                            "load": str(load),
                            "ours": name,
                            "best_peer": best,
                            "to_best_peer": _ratio(rate, peers.get(best or "")),
                            "to_flexserve": _ratio(rate, rates.get(BASELINE)),
                        }
                    )
        return found


def _ratio(first: float, second: float | None) -> float | None:
    return round(first / second, 2) if second else None


def write(result: Result, folder: Path) -> Path:
    """JSON and Markdown, named by date and ensemble; the path without ending."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{result.machine['date']}-{result.ensemble}"
    content = {
        "ensemble": result.ensemble,
        "machine": result.machine,
        "settings": result.settings,
        "servers": [asdict(server) for server in result.servers],
        "figures": [each.summary() for each in result.figures],
        "ratios": result.ratios(),
        "in_process": result.in_process,
        "versions": result.versions,
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    return stem


def markdown(result: Result) -> str:
    """All tables."""
    lines = [f"# {result.ensemble}", "", describe(result.machine), ""]
    settings = ", ".join(f"{key}: {value}" for key, value in result.settings.items())
    lines += [settings, ""]
    for title, header, body in tables(result):
        lines += [f"## {title}", "", _row(header), _row(["---"] * len(header))]
        lines += [*(_row(row) for row in body), ""]
    return "\n".join(lines)


def show(result: Result) -> None:
    """All tables on the terminal."""
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
    """Title, header and rows of every table."""
    found: list[tuple[str, list[str], Rows]] = []
    header = ["alternative", "images/s", "slowest-fastest", "p50 ms", "p99 ms", "CPU ms/image"]
    for load in result.loads:
        body = [_figures_row(each) for each in result.of(load)]
        found.append((str(load), [*header, "errors"], body))
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
        found.append(("Images per second, ratios", header, ratios))
    header = ["alternative", "start s", "memory MB", "without Java", "equal labels"]
    body = [_server_row(server) for server in result.servers]
    found.append(("Servers", header, body))
    if result.in_process:
        header = ["in one process", "batch", "ms"]
        body = [[str(r["what"]), str(r["batch"]), _text(r["ms"])] for r in result.in_process]
        found.append(("Without a server", header, body))
    return found


def _figures_row(each: Figures) -> list[str]:
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
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
