"""Measures how long clients wait while a large archive is registered with their server.

Eight clients each send one request after another to the presence example. Meanwhile an archive of
``--gigabytes`` is registered: by the verb `register`, which calls TorchServe's gRPC management
service, and by an asynchronous REST call. The figures are in docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import requests
import torch
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive

from .swaps import HEADER, NUM_CLIENTS, Running, build, observe, plain_client, questions_of

NAME = "large"

_CODE = '''
import torch
from torch import nn


class Large(nn.Module):
    """Computes little with many weights, so that clients wait for the extraction alone."""

    def __init__(self, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, 1024))

    def forward(self, batch):
        return batch.flatten(1)[:, :2] * self.weight[0, :2]
'''


def build_large(folder: Path, store: Path, num_bytes: int) -> str:
    """Build an archive of one member with so many bytes of weights, and return its file's name."""
    rows = num_bytes // (1024 * torch.float32.itemsize)
    folder.mkdir()
    (folder / "large.py").write_text(_CODE)
    save_file({"weight": torch.rand(rows, 1024)}, folder / "large.safetensors")
    spec = {
        "name": NAME,
        "version": "1.0",
        "task": "classification",
        "labels": ["a", "b"],
        "preprocessing": {"small": {"resize": [2, 2]}},
        "members": [
            {
                "name": "large",
                "architecture": "large.py:Large",
                "arguments": {"rows": rows},
                "weights": "large.safetensors",
            }
        ],
        "runtime": {"engine": "torch"},
    }
    (folder / "ensemble.yaml").write_text(json.dumps(spec))
    return build_archive(folder / "ensemble.yaml", store, check=False).name


def register_by_verb(running: Running, archive: str) -> None:
    """Register the archive as `ts-ensemble register` does, and remove it again."""
    running.verb("register", archive)
    running.verb("unregister", NAME)


def register_by_rest(running: Running, archive: str) -> None:
    """Register the archive by an asynchronous REST call, and remove it again."""
    models = f"{running.server.management_address}/models"
    query = {"url": archive, "initial_workers": "0", "synchronous": "false"}
    requests.post(models, params=query, timeout=600).raise_for_status()
    requests.delete(f"{models}/{NAME}", timeout=60).raise_for_status()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registration", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the archive")
    parser.add_argument("--times", type=int, default=3, help="how often it is registered each way")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="registration-"))
    running: Running | None = None
    try:
        build(folder)
        archive = build_large(folder / "large", folder / "store", int(options.gigabytes * 1e9))
        running = Running(folder)
        with running.server.client() as client:
            questions = questions_of(4, client)
        clients = [plain_client(running.server.inference_address) for _ in range(NUM_CLIENTS)]
        print(HEADER, flush=True)
        for what, register in (
            ("register, gRPC", register_by_verb),
            ("REST, asynchronous", register_by_rest),
        ):
            actions = [partial(register, running, archive)] * options.times
            row = observe(what, actions, clients, questions, running.phases)
            print(row.text(), *row.failed, sep="\n", flush=True)
    finally:
        if running is not None:
            running.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
