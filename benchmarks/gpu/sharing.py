"""Step: several large members in one process against a process for each: memory and images/s.

``python -m benchmarks.gpu.sharing`` is one of the processes. It loads its members, prints a line
when it is ready, and measures when it reads a line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.spec import load_spec

from . import large_members
from .children import command, environment
from .ensembles import inputs
from .rows import Row, Step

_END_SECONDS = 10


def measure(step: Step) -> None:
    """Measure both ways with the same members and batches, one after the other.

    An image counts when all members have answered it.
    """
    num_members, batch_size = (8, 32) if step.on_gpu else (2, 2)
    seconds = 5.0 if step.on_gpu else 0.1
    folders = [step.folder / f"only{number}" for number in range(num_members)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        large_members.write_large(folder, [number], on_gpu=step.on_gpu)
    together = step.folder / "together"
    together.mkdir()
    for number, folder in enumerate(folders):
        (together / f"m{number}.safetensors").hardlink_to(folder / f"m{number}.safetensors")
    large_members.write_large(together, range(num_members), on_gpu=step.on_gpu)
    rows = []
    for name, each in (
        (f"{num_members} members in one process", [together]),
        (f"{num_members} members in a process each", folders),
    ):
        with step.row(f"{name}, batch {batch_size}", measures=True) as row:
            _measure(row, each, step.device, batch_size, seconds)
            rows.append(row)
    if len(rows) == 2:
        with step.row("one process against a process each", measures=True) as row:
            for key in ("images_per_second", "device_mb", "host_mb"):
                one, other = (float(each.values[key]) for each in rows)
                row.values[key] = round(one / max(other, 1e-9), 3)
            row.detail = ", ".join(f"{key} {value}" for key, value in row.values.items())


def _measure(
    row: Row, folders: Sequence[Path], device: torch.device, batch_size: int, seconds: float
) -> None:
    """Start a process for each folder, measure all of them at once, and end them."""
    before = _device_bytes(device)
    with contextlib.ExitStack() as stack:
        processes = []
        for folder in folders:
            options = ["--folder", folder, "--device", device]
            options += ["--batch", batch_size, "--seconds", seconds]
            process = stack.enter_context(_started(command("benchmarks.gpu.sharing", *options)))
            processes.append(process)
        for process in processes:
            _read(process)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        results = [_read(process) for process in processes]
        device_bytes = _device_bytes(device) - before
    # Each process computes all images with its members. So the slowest says how many are ready.
    row.values |= {
        "images_per_second": round(min(each["images_per_second"] for each in results), 1),
        "device_mb": round(device_bytes / 1e6),
        "host_mb": round(sum(each["host_bytes"] for each in results) / 1e6),
    }
    row.detail = (
        f"{row.values['images_per_second']} images/s, {row.values['device_mb']} MB on the device, "
        f"{row.values['host_mb']} MB in the host's memory"
    )


@contextlib.contextmanager
def _started(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that is told what to do by lines; it ends with the ``with`` block."""
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Read a line of JSON that a process prints.

    Raises:
        RuntimeError: it ended instead; the message holds the end of what it said.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended: {process.stderr.read()[-2000:]}")
    content: dict[str, Any] = json.loads(line)
    return content


def _device_bytes(device: torch.device) -> int:
    """Memory of a GPU that all processes use together; 0 for a CPU."""
    if device.type == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _host_bytes() -> int:
    """This process's share of the host's memory. Pages of several processes count in parts."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * kilobytes


def main() -> None:
    """Load the members of a folder, and measure them when a line arrives."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sharing", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    spec = load_spec(options.folder / "ensemble.yaml")
    runtime = Runtime.load(spec, options.folder, options.device)
    side = large_members.side_of_input(options.device.type == "cuda")
    batch = inputs(options.batch, side)
    images = [*(64 * batch + 128).clamp(0, 255).to(torch.uint8)]
    runtime.run(images)
    print("{}", flush=True)
    sys.stdin.readline()
    count, started = 0, time.perf_counter()
    # A run ends with scores in host memory, so the device has computed them.
    while count == 0 or time.perf_counter() - started < options.seconds:
        runtime.run(images)
        count += len(images)
    rate = count / (time.perf_counter() - started)
    print(json.dumps({"images_per_second": rate, "host_bytes": _host_bytes()}), flush=True)
    # The parent reads the device's memory while this process still holds its own.
    sys.stdin.readline()


if __name__ == "__main__":
    main()
