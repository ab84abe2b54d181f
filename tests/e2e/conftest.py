"""An archive and a server that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away


@pytest.fixture(scope="session")
def probe_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with probes-1.0.mar, a presence ensemble of three members."""
    folder, store = tmp_path_factory.mktemp("probes"), tmp_path_factory.mktemp("probe-store")
    probes(folder, task="presence", policies={"default": "majority"}, limits={"max_samples": 64})
    build_archive(folder / "ensemble.yaml", store)
    return store


@pytest.fixture(scope="session")
def probe_server(probe_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of probes-1.0.mar; tests may send it requests, but must not change it."""
    settings = ServerSettings(probe_store, ("probes-1.0.mar",), overrides=throw_away())
    with Server.start(settings, tmp_path_factory.mktemp("probe-run")) as server:
        server.wait_ready()
        yield server
