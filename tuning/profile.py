"""Measure throughput and latency of a server with several settings, by real requests."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.frontier import MeasuredChoice, ServingChoice

if TYPE_CHECKING:
    from ..handlers.spec import EnsembleSpec


def choices(
    workers: Sequence[int],
    batch_sizes: Sequence[int],
    delays_ms: Sequence[int],
    threads: Sequence[int | None],
) -> list[ServingChoice]:
    """List every combination of settings.

    A batch of one request waits for no other, so it is measured with the shortest delay only.

    Args:
        workers: numbers of worker processes.
        batch_sizes: maximum numbers of requests in a batch.
        delays_ms: longest times that a batch waits to fill.
        threads: numbers of threads of a worker; None: cores divided by workers.
    """
    combined = itertools.product(workers, batch_sizes, delays_ms, threads)
    return list(
        dict.fromkeys(
            ServingChoice(
                num_workers, batch_size, delay if batch_size > 1 else min(delays_ms), num_threads
            )
            for num_workers, batch_size, delay, num_threads in combined
        )
    )


def measure(
    spec_path: Path,
    spec: EnsembleSpec,
    settings_to_try: Sequence[ServingChoice],
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
        settings_to_try: the settings to measure.
        images: encoded images that are sent in turn.
        clients: for each measurement the number of clients that send requests at the same time.
        seconds: duration of each measurement.
        samples: folder of images on which compiled members are compared with the saved ones.

    Yields:
        The measurement of each combination of settings and clients, as soon as it is made.
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
        for number, choice in enumerate(settings_to_try):
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
    """Copy an archive, with settings to measure in place of the spec's own.

    Args:
        built: the archive to copy.
        target: path of the copy.
        spec: the ensemble in the archive.
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
