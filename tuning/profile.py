"""Measure settings of a server with real requests, for a choice within a latency bound."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.frontier import MeasuredChoice, ServingChoice, frontier

if TYPE_CHECKING:
    from ..handlers.spec import EnsembleSpec


def choices(
    workers: Sequence[int],
    batch_sizes: Sequence[int],
    delays_ms: Sequence[int],
    threads: Sequence[int | None],
) -> list[ServingChoice]:
    """Every combination; a batch of one request waits for none."""
    combined = itertools.product(workers, batch_sizes, delays_ms, threads)
    return list(
        dict.fromkeys(
            ServingChoice(w, size, delay if size > 1 else min(delays_ms), t)
            for w, size, delay, t in combined
        )
    )


def measure(
    spec_path: Path,
    spec: EnsembleSpec,
    asked: Sequence[ServingChoice],
    images: Sequence[bytes],
    *,
    clients: Sequence[int],
    seconds: float,
    samples: Path,
) -> Iterator[MeasuredChoice]:
    """Build the ensemble once, and serve and load it with each combination of settings in turn.

    Args:
        spec_path: the spec's file.
        spec: the ensemble.
        asked: the settings to measure.
        images: encoded images that are sent in turn.
        clients: for each measurement how many clients ask at the same time.
        seconds: duration of each measurement.
        samples: folder of images on which compiled members are compared with the saved ones.

    Yields:
        One measurement for each combination of settings and clients, as it is made.
    """
    from ..archiver.build import build_archive
    from ..serving.load import LoadTarget, closed_loop, metrics_of
    from ..serving.server import Server
    from ..serving.settings import ServerSettings, throw_away

    with tempfile.TemporaryDirectory(prefix="profile-") as temporary:
        folder = Path(temporary)
        built = build_archive(spec_path, folder, samples=samples, report=print)
        store = folder / "store"
        store.mkdir()
        for number, choice in enumerate(asked):
            archive = store / built.name
            variant(built, archive, spec, choice)
            settings = ServerSettings(store, (archive.name,), overrides=throw_away())
            with Server.start(settings, folder / str(number)) as server:
                server.wait_ready()
                for count in clients:
                    target = LoadTarget(server.inference_address, (f"/predictions/{spec.name}",))
                    measurement = closed_loop(
                        target, images, clients=count, seconds=seconds, stop_at_error=True
                    )
                    subject = f"{server.inference_address}, model '{spec.name}'"
                    metrics = metrics_of(measurement, count, subject)
                    yield MeasuredChoice(choice, metrics)


def variant(built: Path, target: Path, spec: EnsembleSpec, choice: ServingChoice) -> None:
    """Copy an archive with the settings that are to be measured in place of the spec's own.

    Args:
        built: the archive of `spec`.
        target: the new file.
        spec: the ensemble.
        choice: the settings.
    """
    from ..archiver.variants import vary_archive

    serving = replace(
        spec.serving,
        workers=choice.workers,
        batch_size=choice.batch_size,
        max_batch_delay_ms=choice.max_batch_delay_ms,
    )
    # Always a number: without one the spec's own runtime.threads would stay.
    vary_archive(built, target, spec, serving, choice.threads_of_a_worker())


def print_frontier(tried: Sequence[MeasuredChoice], latency_ms: float) -> None:
    """Print the settings of which no others have more throughput at less latency."""
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
    """Write ``profile.json`` and ``profile.svg`` into a folder, which is made if missing."""
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
        of_load = [each.metrics for each in tried if each.metrics.clients == clients]
        axes.scatter(
            [f.p99_ms for f in of_load],
            [f.images_per_second for f in of_load],
            label=f"{clients} client(s)",
        )
    line = frontier(tried)
    axes.step(
        [each.metrics.p99_ms for each in line],
        [each.metrics.images_per_second for each in line],
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
