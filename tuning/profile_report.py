"""Show measurements of a server's settings: the best ones as a table, all as JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..serving.frontier import MeasuredChoice, frontier


def print_frontier(tried: Sequence[MeasuredChoice], latency_ms: float) -> None:
    """Print the settings that no others beat in both throughput and latency.

    Args:
        tried: all measurements.
        latency_ms: bound of the p99, for the title.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"the best images/s for each p99 (bound: {latency_ms:g} ms)")
    for name in ("settings", "clients", "images/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "settings" else "right")
    for each in frontier(tried):
        metrics = each.metrics
        table.add_row(
            str(each.choice),
            str(metrics.clients),
            f"{metrics.images_per_second:.1f}",
            f"{metrics.p50_ms:.1f}",
            f"{metrics.p99_ms:.1f}",
        )
    Console(width=100).print(table)


def write_report(
    folder: Path, tried: Sequence[MeasuredChoice], chosen: MeasuredChoice | None, latency_ms: float
) -> None:
    """Write ``profile.json`` and ``profile.svg`` into a folder, which is made if missing.

    Args:
        folder: the folder.
        tried: all measurements.
        chosen: the measurement that was chosen; None if none keeps to the bound.
        latency_ms: bound of the p99.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "latency_ms": latency_ms,
        "chosen": None if chosen is None else asdict(chosen),
        "tried": [asdict(each) for each in tried],
    }
    (folder / "profile.json").write_text(json.dumps(content, indent=1) + "\n")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for clients in sorted({each.metrics.clients for each in tried}):
        metrics = [each.metrics for each in tried if each.metrics.clients == clients]
        axes.scatter(
            [each.p99_ms for each in metrics],
            [each.images_per_second for each in metrics],
            label=f"{clients} client(s)",
        )
    best = frontier(tried)
    axes.step(
        [each.metrics.p99_ms for each in best],
        [each.metrics.images_per_second for each in best],
        where="post",
        color="gray",
    )
    axes.axvline(latency_ms, color="red", linestyle=":", label=f"bound, {latency_ms:g} ms")
    if chosen is not None:
        axes.annotate(
            str(chosen.choice),
            (chosen.metrics.p99_ms, chosen.metrics.images_per_second),
            textcoords="offset points",
            xytext=(0, 8),
        )
    axes.set(xlabel="p99 in ms", ylabel="images per second", xscale="log")
    axes.legend()
    figure.savefig(folder / "profile.svg")
    pyplot.close(figure)
