"""Shows that versions change, and processes die, without clients noticing: one table.

16 closed-loop clients and an open loop send requests to the presence example, whose two versions
combine the members in different ways, so that every answer can be checked against the version that
it names. Meanwhile versions are rolled out and back, workers are scaled and killed, Java is killed,
the disk is full, and archives fail that are damaged in different ways.

``python -m benchmarks.changes_under_load --help`` lists the options. The result is a table in
docs/operations.md; ``benchmarks.swaps`` measures the single calls behind a rollout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import torch
from safetensors.torch import load, save, save_file

from examples.data import load as load_digits
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.packing import write_entries
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import ENSEMBLE, RECORD
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.processes import is_java

from . import machine
from .swaps import NAME, Running, archive, build
from .watched_load import Ask, Images, Operation, Question, Row, essence, observe

OLD, NEW, LARGE, DAMAGED, HANGING = "1.0", "1.1", "1.2", "1.3", "1.4"
"""Versions: two that serve, and three that cannot be rolled out."""

BATCH_SIZE = 8
"""Largest number of requests in a worker at once, so that a kill loses no more than these."""

_NUM_QUESTIONS = 16
_IMAGES_PER_REQUEST = 4
_LARGE_BYTES = 64 * 2**20
_FULL_DISK_BYTES = 32 * 2**20
"""No file may grow beyond this while the disk is full. Logs stay far below it."""

_STARTUP_TIMEOUT_SECONDS = 30
"""A worker that has not loaded by then hangs; beside the clients the others need 10 to 17 s."""

_OPERATIONS_AT_ONCE = 10
"""The clients are started anew after so many operations, and the result is written."""

_HANGING_CODE = """
import sys
import time

from torch import nn


class Hanging(nn.Module):
    def __init__(self):
        super().__init__()
        if "model_service_worker" in sys.argv[0]:
            time.sleep(3600)
"""

_LARGE_CODE = """
import torch
from torch import nn


class Large(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, 1024))

    def forward(self, batch):
        return batch.flatten(1)[:, :2]
"""


def build_versions(folder: Path) -> None:
    """Build all five versions into ``folder/store``."""
    build(folder)
    source, store = folder / "source", folder / "store"
    spec = source / "ensemble.yaml"
    presence = re.sub(r'^version: ".*"', f'version: "{OLD}"', spec.read_text(), flags=re.M)
    presence += (
        f"\nserving: {{batch_size: {BATCH_SIZE}, startup_timeout_s: {_STARTUP_TIMEOUT_SECONDS}}}\n"
        "runtime: {engine: torch}\n"
    )

    def build_version(version: str, text: str = presence, *, check: bool = True) -> Path:
        spec.write_text(text.replace(f'version: "{OLD}"', f'version: "{version}"'))
        return build_archive(spec, store, check=check)

    build_version(OLD)
    build_version(NEW, presence.replace("default: majority", "default: any"))
    (source / "large.py").write_text(_LARGE_CODE)
    rows = _LARGE_BYTES // (1024 * torch.float32.itemsize)
    save_file({"weight": torch.rand(rows, 1024)}, source / "weights" / "large.safetensors")
    build_version(LARGE, _with_member(presence, "large", "Large", {"rows": rows}), check=False)
    (source / "hanging.py").write_text(_HANGING_CODE)
    save_file({"weight": torch.zeros(1)}, source / "weights" / "hanging.safetensors")
    build_version(HANGING, _with_member(presence, "hanging", "Hanging", {}), check=False)
    _change_weights(build_version(DAMAGED))


def _with_member(text: str, name: str, architecture: str, arguments: dict[str, int]) -> str:
    member = {
        "name": name,
        "architecture": f"{name}.py:{architecture}",
        "arguments": arguments,
        "weights": f"weights/{name}.safetensors",
    }
    return text.replace("members:\n", f"members:\n  - {json.dumps(member)}\n")


def _change_weights(path: Path) -> None:
    """Change a member's weights, so that the archive is whole but fails its self-test."""
    with zipfile.ZipFile(path) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    record = ArchiveRecord.from_json(contents.pop(RECORD).decode(), source=path.name)
    weights = f"{ENSEMBLE}/weights/linear.safetensors"
    contents[weights] = save({name: -each for name, each in load(contents[weights]).items()})
    files = {name: sha256_of_bytes(content) for name, content in contents.items()}
    contents[RECORD] = ArchiveRecord(files, record.built_with).to_json().encode()
    write_entries(contents, path)


def questions_of(client: InferenceClient, name: str, requests: Sequence[Images]) -> list[Question]:
    """Ask both versions, while nothing else happens, what they answer."""
    return [
        Question(
            images,
            {
                version: essence(client.predict(name, images, version=version))
                for version in (OLD, NEW)
            },
        )
        for images in requests
    ]


def asking(client: InferenceClient, name: str) -> Ask:
    """Return a function that sends images to the default version of a model."""
    return lambda images: client.predict(name, images)


@contextlib.contextmanager
def full_disk(running: Running) -> Iterator[None]:
    """Let Java write no file beyond `_FULL_DISK_BYTES`: writing fails, as on a full disk."""
    java = next(each for each in running.server.processes() if is_java(each))
    before = java.rlimit(psutil.RLIMIT_FSIZE)
    java.rlimit(psutil.RLIMIT_FSIZE, (_FULL_DISK_BYTES, before[1]))
    try:
        yield
    finally:
        java.rlimit(psutil.RLIMIT_FSIZE, before)


def register_on_full_disk(running: Running) -> None:
    """Roll out an archive that does not fit onto the disk."""
    with full_disk(running):
        running.verb("rollout", NAME, archive(LARGE))


def changes(running: Running, times: int) -> list[Operation]:
    """Rollouts and rollbacks in turn, then workers more and fewer."""
    there_and_back = [
        Operation("rollout", partial(running.verb, "rollout", NAME, archive(NEW))),
        Operation("rollback", partial(running.verb, "rollback", NAME)),
    ]
    scalings = [
        Operation("scale 1, 2, 1, ...", partial(running.scale, 2 - number % 2))
        for number in range(times)
    ]
    return [*there_and_back * times, *scalings]


def failures(running: Running, times: int) -> list[Operation]:
    """Rollouts that must fail and must leave the old version serving."""
    return [
        *[Operation("rollout, disk full", partial(register_on_full_disk, running), True)] * times,
        *[
            Operation(name, partial(running.verb, "rollout", NAME, archive(version)), True)
            for name, version in (
                ("rollout, self-test fails", DAMAGED),
                ("rollout, hangs at load", HANGING),
            )
            for _ in range(times)
        ],
    ]


def kills(running: Running, workers: int, java: int, clients: str) -> list[Operation]:
    """``kill -9`` of workers, and of Java, after which the server is started again."""
    return [
        *[Operation(f"kill -9 of a worker, {clients}", running.kill_worker)] * workers,
        *[Operation(f"kill -9 of Java, serve again, {clients}", running.kill_java)] * java,
    ]


HEADER = (
    "| operation | times | requests | lost | wrong | longest wait (s) | seconds each |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def text_of(row: Row) -> str:
    """Write a row in Markdown."""
    lost = f"{row.num_lost}"
    if row.num_lost and row.times > 1:
        lost += f", at most {row.most_lost_at_once} at once"
    return (
        f"| {row.name} | {row.times} | {row.requests:,} | {lost} | {row.wrong} "
        f"| {row.longest_seconds:.2f} | {row.seconds / max(1, row.times):.1f} |"
    )


def write(rows: Sequence[Row], folder: Path) -> Path:
    """Write a JSON and a Markdown file, and return the path of the Markdown file."""
    measured_on = machine.machine()
    stem = folder / f"{measured_on['date']}-changes-under-load"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": measured_on, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["# Changes under load", "", machine.describe(measured_on), "", HEADER]
    lines += [text_of(row) for row in rows]
    reasons = [
        f"- {row.name}: {count} x {reason}" for row in rows for reason, count in row.lost.items()
    ]
    lines += ["", "Why requests were lost:", "", *reasons] if reasons else []
    surprises = [f"- {row.name}: {each}" for row in rows for each in row.surprises]
    lines += ["", "Operations that did not go as they should:", "", *surprises] if surprises else []
    path = stem.with_suffix(".md")
    path.write_text("\n".join(lines) + "\n")
    return path


def plan(running: Running, options: argparse.Namespace) -> Iterator[tuple[bool, list[Operation]]]:
    """Yield whether the clients repeat failed requests, and what happens meanwhile."""
    for repeats, operations in (
        (False, failures(running, options.failures)),
        (False, kills(running, options.kills, options.java, "clients that repeat nothing")),
        (True, kills(running, options.kills, options.java, "`InferenceClient`")),
        (False, changes(running, options.times)),
    ):
        for begin in range(0, len(operations), _OPERATIONS_AT_ONCE):
            yield repeats, operations[begin : begin + _OPERATIONS_AT_ONCE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it to the folder of results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.changes_under_load", description=__doc__
    )
    parser.add_argument("--times", type=int, default=20, help="rollouts, rollbacks and scalings")
    parser.add_argument("--failures", type=int, default=3, help="failing rollouts of each kind")
    parser.add_argument("--kills", type=int, default=10, help="workers to kill, twice")
    parser.add_argument("--java", type=int, default=3, help="times that Java is killed, twice")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", help="folder for results"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="changes-"))
    running: Running | None = None
    rows: dict[str, Row] = {}
    try:
        build_versions(folder)
        running = Running(folder)
        questions = _questions(running)
        for repeats, operations in plan(running, options):
            with _client(running.server.inference_address, repeats) as client:
                observe(operations, asking(client, NAME), questions, rows=rows)
            written = write(list(rows.values()), options.output)
        print(written.read_text())
    finally:
        if running is not None:
            running.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _client(address: str, repeats: bool) -> InferenceClient:
    """Make a client whose requests outlast a restart of the server, or are sent only once."""
    if repeats:
        return InferenceClient(address, timeout=90, retries=60, attempt_timeout=10)
    return InferenceClient(address, timeout=30, retries=0)


def _questions(running: Running) -> list[Question]:
    """Make the requests, and ask both versions for the right answers."""
    files = load_digits()[1].files
    requests: list[Images] = [
        [
            (f"{i}.png", files[(_IMAGES_PER_REQUEST * start + i) % len(files)])
            for i in range(_IMAGES_PER_REQUEST)
        ]
        for start in range(_NUM_QUESTIONS)
    ]
    running.verb("register", archive(NEW))
    try:
        with running.server.client() as client:
            return questions_of(client, NAME, requests)
    finally:
        running.verb("unregister", NAME, NEW)


if __name__ == "__main__":
    main()
