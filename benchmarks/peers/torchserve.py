"""Starts TorchServe with an archive of this project."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ensembles import ENSEMBLES
from benchmarks.peers.starting import Running, Work, wait_for_answer
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.load import LoadTarget
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away


def build_ours(work: Work, name: str, samples: Path, **runtime: object) -> str:
    """Write a spec, build its archive, and return the archive's file name.

    Args:
        work: has the ensemble, the batch size and the delay.
        name: name of the endpoint.
        samples: folder of images with which the build tries the members.
        runtime: the spec's settings under ``runtime``.
    """
    serving = {"batch_size": work.batch_size, "max_batch_delay_ms": work.delay_ms}
    spec = ENSEMBLES[work.ensemble].write(work.folder, name, serving=serving, **runtime)
    return build_archive(spec, work.folder / "store", samples=samples, report=print).name


@contextmanager
def ours(work: Work, name: str) -> Iterator[Running]:
    """Serve an archive that `build_ours` has built, in a server of its own."""
    launched = time.perf_counter()
    settings = ServerSettings(work.folder / "store", (f"{name}-1.0.mar",), overrides=throw_away())
    run = work.folder / f"run-{name}"
    with Server.start(settings, run) as server:
        server.wait_ready()
        target = LoadTarget(
            server.inference_address,
            (f"/predictions/{name}",),
            fields={"response": "flexserve"},
            image_type=work.image_type,
        )
        wait_for_answer(work, target, lambda: server.running, run / "logs" / "server.log")
        yield Running(target, server.pid, time.perf_counter() - launched)
