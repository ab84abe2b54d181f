"""The verb ``profile``: measure settings with a real server, and choose by a latency bound."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.frontier import ServingChoice, Tried, best, frontier
from .commands import require_installed

if TYPE_CHECKING:
    from ..handlers.spec import EnsembleSpec

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MISSED = 3


def add_command(subparsers: Subparsers) -> None:
    """Add ``profile``."""
    command = subparsers.add_parser(
        "profile",
        help="measure batch size, delay, workers and threads, and choose for a latency bound",
        description="Build the ensemble, serve it with each combination of settings in turn, and "
        "measure images per second and latency with the images given. The exit status is "
        f"{_MISSED} if no settings keep to the bound.",
    )
    command.add_argument("spec", type=Path, help="the ensemble's YAML file")
    command.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="like those that will be sent"
    )
    command.add_argument(
        "--latency-ms", type=float, default=250, help="bound of the p99 (default: 250)"
    )
    cores = os.cpu_count() or 1
    for name, default, what in (
        ("--workers", sorted({1, cores}), "processes, each with all members"),
        ("--batch-sizes", [1, 8, 32], "requests in a batch"),
        ("--delays-ms", [1, 10], "longest wait for a batch to fill"),
        ("--clients", [1, 8, 32], "that ask at the same time"),
    ):
        command.add_argument(
            name, type=_numbers, default=default, metavar="N,N", help=f"{what} (default: {default})"
        )
    command.add_argument(
        "--threads",
        type=_numbers,
        default=[None],
        metavar="N,N",
        help="of each worker (default: cores divided by workers, whatever the spec says)",
    )
    command.add_argument("--seconds", type=float, default=3, help="of each measurement")
    command.add_argument("--report", type=Path, metavar="FOLDER", help="profile.json, profile.svg")
    command.add_argument(
        "--write",
        action="store_true",
        help="write the choice into the spec: serving and runtime.threads",
    )
    command.set_defaults(run=_profile)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers from 1 on, as 1,8,32")
    return found


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


def _profile(arguments: argparse.Namespace) -> int:
    from ..archiver.build import sample_files
    from ..handlers.spec import load_spec

    spec = load_spec(arguments.spec)
    if arguments.write or arguments.report is not None:
        require_installed(("matplotlib", "ruamel.yaml"), "--write and --report need")
    images = [path.read_bytes() for path in sample_files(arguments.images, "--images")]
    asked = choices(
        arguments.workers, arguments.batch_sizes, arguments.delays_ms, arguments.threads
    )
    tried: list[Tried] = []
    for each in _measure(spec, arguments, asked, images):
        tried.append(each)
        print(
            f"{each.choice}; {each.figures.clients} client(s): "
            f"{each.figures.images_per_second:.1f} images/s, p99 {each.figures.p99_ms:.1f} ms",
            flush=True,
        )
    _print(tried, arguments.latency_ms)
    chosen = best(tried, arguments.latency_ms)
    if arguments.report is not None:
        _report(arguments.report, tried, chosen, arguments.latency_ms)
    if chosen is None:
        quickest = frontier(tried)[0]
        print(
            f"nothing keeps to {arguments.latency_ms:g} ms; the quickest takes "
            f"{quickest.figures.p99_ms:.1f} ms: {quickest.choice}"
        )
        return _MISSED
    print(f"best within {arguments.latency_ms:g} ms: {chosen.choice}")
    if arguments.write:
        from .writing import write_serving

        choice = chosen.choice
        settings = asdict(choice)
        threads = settings.pop("threads")
        write_serving(arguments.spec, settings, threads)
        print(f"written to {arguments.spec}; build the archive again")
    return 0


def _measure(
    spec: EnsembleSpec,
    arguments: argparse.Namespace,
    asked: Sequence[ServingChoice],
    images: Sequence[bytes],
) -> Iterator[Tried]:
    from ..archiver.build import build_archive
    from ..serving.load import closed_loop
    from ..serving.server import Server
    from ..serving.settings import ServerSettings, throw_away

    with tempfile.TemporaryDirectory(prefix="profile-") as temporary:
        folder = Path(temporary)
        built = build_archive(arguments.spec, folder, samples=arguments.images, say=print)
        store = folder / "store"
        store.mkdir()
        for number, choice in enumerate(asked):
            archive = store / built.name
            variant(built, archive, spec, choice)
            settings = ServerSettings(store, (archive.name,), overrides=throw_away())
            with Server.start(settings, folder / str(number)) as server:
                server.wait_ready()
                for clients in arguments.clients:
                    figures = closed_loop(
                        server.inference_address,
                        spec.name,
                        images,
                        clients=clients,
                        seconds=arguments.seconds,
                    )
                    yield Tried(choice, figures)


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


def _print(tried: Sequence[Tried], latency_ms: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"the best images/s for each p99 (bound: {latency_ms:g} ms)")
    for name in ("settings", "clients", "images/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "settings" else "right")
    for each in frontier(tried):
        figures = each.figures
        table.add_row(
            str(each.choice),
            str(figures.clients),
            f"{figures.images_per_second:.1f}",
            f"{figures.p50_ms:.1f}",
            f"{figures.p99_ms:.1f}",
        )
    Console(width=100).print(table)


def _report(folder: Path, tried: Sequence[Tried], chosen: Tried | None, latency_ms: float) -> None:
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
    for clients in sorted({each.figures.clients for each in tried}):
        of_load = [each.figures for each in tried if each.figures.clients == clients]
        axes.scatter(
            [f.p99_ms for f in of_load],
            [f.images_per_second for f in of_load],
            label=f"{clients} client(s)",
        )
    line = frontier(tried)
    axes.step(
        [each.figures.p99_ms for each in line],
        [each.figures.images_per_second for each in line],
        where="post",
        color="gray",
    )
    axes.axvline(latency_ms, color="red", linestyle=":", label=f"bound, {latency_ms:g} ms")
    if chosen is not None:
        axes.annotate(
            str(chosen.choice),
            (chosen.figures.p99_ms, chosen.figures.images_per_second),
            textcoords="offset points",
            xytext=(0, 8),
        )
    axes.set(xlabel="p99 in ms", ylabel="images per second", xscale="log")
    axes.legend()
    figure.savefig(folder / "profile.svg")
    pyplot.close(figure)
