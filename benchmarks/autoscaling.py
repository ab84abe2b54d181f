"""Measures what `ts-ensemble autoscale` does for throughput and latency.

Eight clients each send one request after another: to one worker, while workers are added, and
afterwards. The member of the first run sleeps, as one that waits for a GPU or another service does;
that of the second one computes, with one thread a worker. The figures are in docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.data import load
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.operations.autoscaling import ScalingRules
from torchserve_ensemble.operations.scaling_loop import Autoscaler
from torchserve_ensemble.serving.load import LoadTarget, closed_loop, metrics_of
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

NAME = "scaled"

_CODE = """
import time

import torch
from torch import nn


class Member(nn.Module):
    def __init__(self, kind, milliseconds):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.kind, self.seconds = kind, milliseconds / 1000

    def forward(self, batch):
        if self.kind == "sleep":
            time.sleep(self.seconds)
        else:
            square, end = torch.ones(64, 64), time.thread_time() + self.seconds
            while time.thread_time() < end:
                square @ square
        return batch.flatten(1)[:, :2] + self.weight
"""


def build(folder: Path, kind: str, milliseconds: int) -> None:
    """Build an archive of one member that sleeps or computes for so long in each batch."""
    (folder / "member.py").write_text(_CODE)
    save_file({"weight": torch.tensor(0.0)}, folder / "member.safetensors")
    spec = {
        "name": NAME,
        "version": "1.0",
        "task": "classification",
        "labels": ["a", "b"],
        "preprocessing": {"small": {"resize": [2, 2]}},
        "serving": {"batch_size": 1},
        "runtime": {"engine": "torch", "threads": 1},
        "members": [
            {
                "name": "member",
                "architecture": "member.py:Member",
                "arguments": {"kind": kind, "milliseconds": milliseconds},
                "weights": "member.safetensors",
            }
        ],
    }
    (folder / "ensemble.yaml").write_text(json.dumps(spec))
    build_archive(folder / "ensemble.yaml", folder, check=False)


def measure(kind: str, milliseconds: int, seconds: float, max_workers: int) -> None:
    """Print the lines of the table for one kind of member."""
    _, held_out = load()
    with tempfile.TemporaryDirectory(prefix="autoscaling-") as temporary:
        folder = Path(temporary)
        build(folder, kind, milliseconds)
        settings = ServerSettings(folder, (f"{NAME}-1.0.mar",), overrides=throw_away())
        with Server.start(settings, folder / "run") as server:
            server.wait_ready()
            target = LoadTarget(server.inference_address, (f"/predictions/{NAME}",))

            def row(moment: str) -> None:
                measured = closed_loop(target, held_out.files[:32], clients=8, seconds=seconds)
                metrics = metrics_of(measured, 8, kind)
                with server.management() as management:
                    workers = len(management.describe(NAME)[0].workers)
                print(
                    f"| {kind} {milliseconds} ms | {moment} | {workers} "
                    f"| {metrics.images_per_second:.0f} | {metrics.p50_ms:.0f} "
                    f"| {metrics.p99_ms:.0f} | {len(measured.errors)} |",
                    flush=True,
                )

            row("before")
            rules = ScalingRules(1, max_workers, cooldown_seconds=10)
            scaler = Autoscaler(folder / "run", NAME, rules, report=lambda line: print("#", line))
            loop = threading.Thread(target=scaler.run, args=(1.0,))
            loop.start()
            row("while it scales")
            scaler.stopping.set()
            loop.join()
            row("after")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, which takes less than two minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--max", type=int, default=4, help="largest number of workers")
    parsed = parser.parse_args(arguments)
    begin = time.monotonic()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    print("| member | moment | workers | images/s | p50 (ms) | p99 (ms) | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, milliseconds in (("sleep", 50), ("compute", 50)):
        measure(kind, milliseconds, parsed.seconds, parsed.max)
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
