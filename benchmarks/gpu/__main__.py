"""Checks that members run rightly and fast on a GPU, and writes the results as JSON and a table.

The exit status is 0 if no row failed, 1 if one did, and 2 if something is missing here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .children import command, environment

if TYPE_CHECKING:
    import torch

    from .rows import Row

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "numpy": "numpy",
}
"""What is imported -> the package that it comes from."""

_MIN_SECONDS_OF_STEP = 15
"""With less time left a step is left out: it could hardly do more than import torch."""

_WRITING_SECONDS = 5
"""Time that is kept for the files with the results."""


@dataclass(frozen=True)
class PlannedStep:
    """A part of the check that runs in a process of its own.

    Attributes:
        name: name of the step.
        module: the module of this package with the step.
        function: name of the function in it that runs the step.
        max_seconds: when the process is ended.
    """

    name: str
    module: str
    function: str
    max_seconds: int

    def load(self) -> Callable[..., None]:
        """Import the function that runs the step."""
        function: Callable[..., None] = getattr(
            import_module(f".{self.module}", __package__), self.function
        )
        return function


# Whether answers are right comes first, and what compiles comes last because it takes longest.
STEPS = {
    step.name: step
    for step in (
        PlannedStep("formats", "formats", "check", 75),
        PlannedStep("limits", "limits", "check", 75),
        PlannedStep("small members", "speed", "measure_small_members", 60),
        PlannedStep("single image", "speed", "measure_single_image", 45),
        PlannedStep("roofline", "speed", "measure_roofline", 60),
        PlannedStep("decoding", "decoding", "measure", 45),
        PlannedStep("sharing", "sharing", "measure", 90),
        PlannedStep("compiled", "compiled", "check", 150),
        PlannedStep("build", "compiled", "build", 150),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/check-gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--device", help="cuda:0 (the default where torch sees a GPU), cuda:N or cpu; on a CPU all "
        "sizes are tiny"
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8, help="time for all (default 8)")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="left out: all of them"
    )
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    missing = [name for package, name in _PACKAGES.items() if not importlib.util.find_spec(package)]
    if missing:
        print(f"missing here: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    if options.device is None:
        options.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here: leave out --device", file=sys.stderr)
        return 2
    if options.rows is not None:
        (name,) = options.steps
        run_step(STEPS[name], device, options.rows)
        return 0
    return _check(options, device)


def _check(options: argparse.Namespace, device: torch.device) -> int:
    """Run each step in a process of its own, as long as there is time, and write the results."""
    from .report import write
    from .rows import Outcome, Row

    started = time.monotonic()
    end = started + 60 * options.minutes - _WRITING_SECONDS
    rows: list[Row] = []
    for name in options.steps:
        seconds_left = end - time.monotonic()
        if seconds_left < _MIN_SECONDS_OF_STEP:
            reason = f"left out: {max(seconds_left, 0):.0f} s were left"
            rows.append(Row(name, "the whole step", Outcome.SKIPPED, detail=reason))
        else:
            rows += rows_of_process(STEPS[name], options.device, seconds_left)
        # After each step, so that being cut off loses nothing.
        table = write(rows, options.output, device, time.monotonic() - started)
        for row in rows:
            if row.step == name:
                print(f"{row.outcome:8} {name}: {row.name}: {row.detail}", flush=True)
    print(f"written: {table} and {table.with_suffix('.json').name}")
    return int(any(row.outcome is Outcome.FAILED for row in rows))


def rows_of_process(step: PlannedStep, device: str, max_seconds: float) -> list[Row]:
    """Run a step in a process of its own, and return its rows.

    Args:
        step: the step.
        device: where members run.
        max_seconds: time that is left for all steps; a step's own limit may be shorter.
    """
    from .rows import Outcome, Row

    limit = min(step.max_seconds, max_seconds)
    with tempfile.TemporaryDirectory() as temporary:
        output, log = Path(temporary) / "rows", Path(temporary) / "log"
        output.touch()
        options = ["--steps", step.name, "--device", device, "--rows", output]
        arguments = command("benchmarks.gpu", *options, "--output", temporary)
        started = time.monotonic()
        with log.open("wb") as file, _started(arguments, file) as process:
            try:
                status = process.wait(limit)
                problem = f"the process ended with status {status}" if status else ""
            except subprocess.TimeoutExpired:
                problem = f"not finished after {limit:.0f} s"
                if limit < step.max_seconds:
                    problem = f"left out for time: {problem}"
        rows = [Row.from_json(line) for line in output.read_text(encoding="utf-8").splitlines()]
        if problem:
            outcome = Outcome.SKIPPED if problem.startswith("left out") else Outcome.FAILED
            log_tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            problem += (
                f": {log_tail.splitlines()[-1]}" if outcome is Outcome.FAILED and log_tail else ""
            )
            seconds = round(time.monotonic() - started, 2)
            rows.append(Row(step.name, "the rest", outcome, seconds, problem, traceback=log_tail))
    return rows


@contextlib.contextmanager
def _started(arguments: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process. It and its children end with the ``with`` block."""
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # In a group of its own, so that its children can be ended with it.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_step(step: PlannedStep, device: torch.device, output: Path | None = None) -> list[Row]:
    """Run a step in this process, and return its rows.

    Args:
        step: the step.
        device: where members run.
        output: a file to which each row is added at once.
    """
    from .rows import Step

    with tempfile.TemporaryDirectory() as temporary:
        running = Step(step.name, device, Path(temporary), output)
        step.load()(running)
    return running.rows


if __name__ == "__main__":
    sys.exit(main())
