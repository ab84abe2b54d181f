"""Starts stock TorchServe with its image_classifier: an endpoint for each member, or a workflow."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import torch
import yaml

from benchmarks.ensembles import ENSEMBLES
from benchmarks.peers import stock_digits_handler, workflow_handler
from benchmarks.peers.members import cores
from benchmarks.peers.starting import Running, Work, wait_for_answer
from torchserve_ensemble.serving.load import LoadTarget
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

_RESPONSE_SECONDS = 120

# Java gets the arguments of a stock TorchServe, and not those of this project's settings.
_STOCK_JAVA = {"vmargs": ""}

_TORCHVISION = """
import torchvision
from torch import nn


class Member(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = torchvision.models.{name}(num_classes={labels})

    def forward(self, batch):
        return self.module(batch)
"""


@contextmanager
def endpoints(work: Work) -> Iterator[Running]:
    """Serve each member at an endpoint of its own; clients send to all of them at the same time."""
    store = _archives(work, work.folder / "stock", with_settings=True)
    launched = time.perf_counter()
    settings = ServerSettings(
        store, tuple(f"{name}.mar" for name in work.members), overrides=throw_away() | _STOCK_JAVA
    )
    run = work.folder / "run-stock"
    with _threads_of_a_worker(work), Server.start(settings, run, check_archives=False) as server:
        server.wait_ready()
        paths = tuple(f"/predictions/{name}" for name in work.members)
        target = LoadTarget(server.inference_address, paths, "raw", image_type=work.image_type)
        wait_for_answer(work, target, lambda: server.running, run / "logs" / "server.log")
        yield Running(target, server.pid, time.perf_counter() - launched)


@contextmanager
def workflow(work: Work) -> Iterator[Running]:
    """Serve all members as a TorchServe workflow.

    The workflow is a graph from one start node over all members to a node that collects their
    answers. Each node has a worker process of its own. TorchServe computes at most four nodes of a
    request at the same time.
    """
    store = _archives(work, work.folder / "workflow", with_settings=False)
    _workflow_archive(work, store / f"{work.ensemble}.war")
    launched = time.perf_counter()
    overrides = throw_away() | _STOCK_JAVA | {"workflow_store": str(store)}
    settings = ServerSettings(store, overrides=overrides)
    run = work.folder / "run-workflow"
    with (
        _threads_of_a_worker(work),
        Server.start(settings, run, check_archives=False) as server,
    ):
        answer = requests.post(
            f"{server.management_address}/workflows",
            params={"url": f"{work.ensemble}.war"},
            timeout=300,
        )
        if not answer.ok:
            raise RuntimeError(f"the workflow is not registered: {answer.text}")
        path = f"/wfpredict/{work.ensemble}"
        target = LoadTarget(server.inference_address, (path,), "raw", image_type=work.image_type)
        wait_for_answer(work, target, lambda: server.running, run / "logs" / "server.log")
        yield Running(target, server.pid, time.perf_counter() - launched)


def _archives(work: Work, store: Path, *, with_settings: bool) -> Path:
    """Build an archive of each member in eager mode with torch-model-archiver, if there is none.

    Args:
        work: has the members.
        store: folder for the archives.
        with_settings: whether the archives contain batch size and timeouts; in a workflow the graph
            has them.
    """
    if store.exists():
        return store
    store.mkdir()
    ensemble = ENSEMBLES[work.ensemble]
    config = store / "model-config.yaml"
    settings = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": work.batch_size,
        "maxBatchDelay": work.delay_ms,
        "responseTimeout": _RESPONSE_SECONDS,
        "startupTimeout": 300,
    }
    config.write_text(yaml.safe_dump(settings))
    names = store / "index_to_name.json"
    names.write_text(json.dumps({str(i): label for i, label in enumerate(ensemble.labels)}))
    digits = work.ensemble == "digits"
    for name in work.members:
        state = ensemble.load(name, work.folder).state_dict()
        code = store / "member.py"
        if digits:
            source = (work.folder / "digit_member.py").read_text()
            # TorchServe accepts a model file with exactly one class.
            code.write_text(source.replace("SmallConvolutional", "Member"))
        else:
            code.write_text(_TORCHVISION.format(name=name, labels=len(ensemble.labels)))
            state = {f"module.{key}": value for key, value in state.items()}
        weights = store / f"{name}.pth"
        torch.save(state, weights)
        handler = inspect.getfile(stock_digits_handler) if digits else "image_classifier"
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name]
        command += ["--version", "1.0", "--serialized-file", str(weights), "--handler", handler]
        command += ["--model-file", str(code), "--export-path", str(store)]
        command += ["--extra-files", str(names)]
        if with_settings:
            command += ["--config-file", str(config)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        weights.unlink()
    return store


def _workflow_archive(work: Work, path: Path) -> None:
    """Write the zip that torch-workflow-archiver would: the graph, its functions and a manifest."""
    # Nodes are named after the members, since these names are the keys in the input of `gather`.
    models: dict[str, object] = {
        "min-workers": 1,
        "max-workers": 1,
        "batch-size": work.batch_size,
        "max-batch-delay": work.delay_ms,
        "retry-attempts": 1,
        "timeout-ms": 1000 * _RESPONSE_SECONDS,
    }
    models |= {name: {"url": f"{name}.mar"} for name in work.members}
    graph = {"begin": list(work.members)} | {name: ["gather"] for name in work.members}
    manifest = {
        "workflow": {
            "workflowName": work.ensemble,
            "specFile": "workflow.yaml",
            "handler": "workflow_handler.py",
        },
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "archiverVersion": "0.2.15",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("WAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr(
            "workflow.yaml", yaml.safe_dump({"models": models, "dag": graph}, sort_keys=False)
        )
        archive.write(inspect.getfile(workflow_handler), "workflow_handler.py")


@contextmanager
def _threads_of_a_worker(work: Work) -> Iterator[None]:
    """Give each worker its share of the cores, as TorchServe's documentation advises for CPUs."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // len(work.members)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
