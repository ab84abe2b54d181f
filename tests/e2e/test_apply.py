"""A real server is brought to desired states, watched and scaled, also when that is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from probe_archives import build_probe
from probe_ensemble import image

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import EnsembleError, ServerError
from torchserve_ensemble.handlers.frontend.siblings import count_workers
from torchserve_ensemble.operations.autoscaling import ScalingRules
from torchserve_ensemble.operations.change_lock import change_lock
from torchserve_ensemble.operations.deployment_file import load_deployment
from torchserve_ensemble.operations.desired import ArchiveFinder, desired_state
from torchserve_ensemble.operations.listings import FolderListing
from torchserve_ensemble.operations.plan import Action, DesiredState
from torchserve_ensemble.operations.reconciling import Reconciliation
from torchserve_ensemble.operations.scaling_loop import Autoscaler
from torchserve_ensemble.operations.watching import Watch
from torchserve_ensemble.registry.pushing import push
from torchserve_ensemble.registry.registry import Registry
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.processes import is_java
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e
IMAGES = [("dark", image(0.1)), ("bright", image(0.9))]
RIGHT = ["dark", "bright"]


class _InterruptedError(Exception):
    """Stands for the death of the process that applies."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, spec = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("spec")
    for version in ("1.0", "1.1"):
        build_probe(spec, folder, version)
    return folder


@pytest.fixture(scope="module")
def settings(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    """A server without models, whose store has both versions."""
    store = tmp_path_factory.mktemp("store")
    for path in archives.iterdir():
        shutil.copy(path, store)
    return ServerSettings(store, overrides=throw_away())


@pytest.fixture(scope="module")
def run_folder(
    settings: ServerSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    Server.start(settings, folder)
    yield folder
    server = Server.attach(folder)
    if server is not None:
        server.stop()


def attached(run_folder: Path) -> Server:
    server = Server.attach(run_folder)
    assert server is not None
    return server


def written(run_folder: Path, *versions: str, **keys: Any) -> Path:
    """Write a deployment of archives in the model store, the first of which is the default."""
    path = run_folder / "deployment.yaml"
    entries = [{"archive": f"probes-{version}.mar", **keys} for version in versions]
    path.write_text(json.dumps({"models": {"probes": {"versions": entries}}}))
    return path


def verb(run_folder: Path, *arguments: str | Path) -> int:
    return main([*map(str, arguments), "--run-folder", str(run_folder)])


def desired(run_folder: Path, path: Path) -> DesiredState:
    def no_fetch(address: str) -> Path:
        raise AssertionError(address)

    finder = ArchiveFinder(attached(run_folder).model_store, path.parent, no_fetch)
    return desired_state(load_deployment(path), finder, str(path))


def versions(run_folder: Path) -> dict[str, tuple[int, int, bool]]:
    """Version -> number of workers, batch size, whether it is the default one."""
    with attached(run_folder).management() as management:
        return {
            each.version: (len(each.workers), each.batch_size, each.default)
            for each in management.versions("probes")
        }


@contextmanager
def asking(run_folder: Path) -> Iterator[list[str]]:
    """Ask the default version all the time, and check that each request is answered rightly."""
    ending, problems, count = threading.Event(), list[str](), 0

    def ask() -> None:
        nonlocal count
        with InferenceClient(attached(run_folder).inference_address, retries=0) as client:
            while not ending.is_set():
                try:
                    answer = client.predict("probes", IMAGES)["predictions"]
                    if [each["label"] for each in answer] != RIGHT:
                        problems.append(str(answer))
                except EnsembleError as error:
                    problems.append(error.message)
                count += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield problems
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert count > 20


def test_apply_is_idempotent_and_its_dry_run_changes_nothing(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(run_folder, "1.1", "1.0")
    assert verb(run_folder, "apply", path, "--dry-run", "--exit-code") == 1
    printed = capsys.readouterr().out
    assert printed.startswith(
        "1. register probes 1.1 from probes-1.1.mar: the server does not have it\n2. register"
    )
    assert verb(run_folder, "status", "--deployment", path) == 0
    assert "0 of 2 versions are as" in capsys.readouterr().out
    assert verb(run_folder, "apply", path) == 0
    assert "2 actions: the server is as" in capsys.readouterr().out
    assert versions(run_folder) == {"1.1": (1, 32, True), "1.0": (1, 32, False)}
    assert verb(run_folder, "apply", path) == 0
    assert capsys.readouterr().out.startswith("no actions: ")
    assert verb(run_folder, "apply", path, "--dry-run", "--exit-code") == 0
    assert verb(run_folder, "apply", run_folder / "none.yaml", "--dry-run", "--exit-code") == 2
    capsys.readouterr()
    assert verb(run_folder, "status", "--deployment", path) == 0
    printed = capsys.readouterr().out
    assert "probes 1.1  default  as desired  1 of 1 workers READY" in printed
    assert "2 of 2 versions are as" in printed
    assert verb(run_folder, "status", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    path = written(run_folder, "1.0", workers=2)
    assert verb(run_folder, "status", "--deployment", path, "--json") == 0
    rows = {each["version"]: each for each in json.loads(capsys.readouterr().out)}
    assert rows["1.0"]["reasons"] == ["workers: 1, not 2", "not the default one"]
    assert rows["1.1"]["finding"] == "not listed"


def test_an_apply_interrupted_after_every_action_gets_there_and_loses_nothing(
    run_folder: Path,
) -> None:
    verb(run_folder, "apply", written(run_folder, "1.1"))
    # TorchServe takes a batch size only at registration, so that 1.1 must be registered anew.
    path = written(run_folder, "1.1", batch_size=4)
    done: list[Action] = []

    def interrupt(action: Action) -> None:
        done.append(action)
        raise _InterruptedError

    with asking(run_folder) as problems:
        for _ in range(10):
            try:
                Reconciliation(attached(run_folder), after_action=interrupt).run(
                    desired(run_folder, path)
                )
            except _InterruptedError:
                continue
            break
    assert problems == []
    assert [f"{each.verb} {each.version}" for each in done] == [
        "register 1.1.0",
        "set-default 1.1.0",
        "unregister 1.1",
        "register 1.1",
        "set-default 1.1",
        "unregister 1.1.0",
    ]
    assert versions(run_folder) == {"1.1": (1, 4, True)}
    left = list(attached(run_folder).model_store.glob("*.applied-*.mar"))
    assert left == [], "the stand-in's file is removed"


def test_two_applies_do_not_interleave(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(run_folder, "1.0")
    before = versions(run_folder)
    with change_lock(run_folder, "ts-ensemble apply other.yaml"):
        assert verb(run_folder, "apply", path) == 1
    assert f"`ts-ensemble apply other.yaml` (pid {os.getpid()}, since " in capsys.readouterr().err
    assert versions(run_folder) == before


@pytest.mark.long
def test_after_the_death_of_the_server_apply_goes_on(
    run_folder: Path, settings: ServerSettings
) -> None:
    server = attached(run_folder)
    path = written(run_folder, "1.0")

    def kill_java(_: Action) -> None:
        (java,) = [each for each in server.processes() if is_java(each)]
        os.kill(java.pid, signal.SIGKILL)
        java.wait(10)

    with pytest.raises(ServerError, match="ended while its state was read; start it again"):
        Reconciliation(server, after_action=kill_java).run(desired(run_folder, path))
    server.stop(drain_timeout=0)
    server = Server.start(settings, run_folder)
    assert Reconciliation(server).run(desired(run_folder, path)) == 1
    assert list(versions(run_folder)) == ["1.0"]


def test_watch_takes_up_complete_archives_and_reports_bad_ones_once(
    run_folder: Path, archives: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "arriving"
    folder.mkdir()
    reports: list[str] = []
    watch = Watch(
        run_folder,
        FolderListing(folder, None, reports.append),
        lambda server: ArchiveFinder(server.model_store, folder, lambda _: folder),
        report=reports.append,
    )
    watch.poll()
    assert reports == [], "without an archive nothing is removed"
    shutil.copy(archives / "probes-1.0.mar", folder)
    (folder / "probes-9.0.mar").write_bytes(b"half")
    watch.poll()
    assert list(versions(run_folder)) == ["1.0"]
    # A whole archive that cannot be served: its worker raises while it loads.
    spec = tmp_path / "spec"
    build_probe(spec, tmp_path / "built", "2.0")
    (spec / "probe.py").write_text("raise RuntimeError('broken')")
    built = build_archive(spec / "ensemble.yaml", tmp_path / "built", check=False)
    built.replace(folder / built.name)
    reports.clear()
    for _ in range(3):
        watch.poll()
    assert list(versions(run_folder)) == ["1.0"]
    assert sum("skipped: probes 2.0: " in each and "broken" in each for each in reports) == 1
    assert sum("probes-9.0.mar" in each for each in reports) == 1


def test_watch_follows_a_tag_and_ends_on_sigterm(
    run_folder: Path, archives: Path, tmp_path: Path
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    push(registry, archives / "probes-1.0.mar")
    registry_options = ["--registry", str(tmp_path / "registry"), "--interval", "0.2"]
    command = ["watch", "registry://probes", *registry_options, "--run-folder", str(run_folder)]
    with subprocess.Popen(
        [sys.executable, "-m", "torchserve_ensemble", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert "watching registry://probes every 0.2 s" in process.stdout.readline()
            wait_until(lambda: list(versions(run_folder)) == ["1.0"])
            push(registry, archives / "probes-1.1.mar")
            wait_until(lambda: list(versions(run_folder)) == ["1.1"])
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_autoscale_adds_and_removes_workers_by_the_servers_own_figures(run_folder: Path) -> None:
    verb(run_folder, "apply", written(run_folder, "1.1"))
    reports: list[str] = []
    # Every measurable load asks for a worker, and every idle interval asks for one less.
    rules = ScalingRules(
        1, 2, low=0.001, high=0.001, readings_up=1, readings_down=1, cooldown_seconds=0
    )
    scaler = Autoscaler(run_folder, "probes", rules, report=reports.append)
    only_shown = Autoscaler(run_folder, "probes", rules, dry_run=True, report=reports.append)
    for each in (scaler, only_shown):
        assert each.step() is None
    with InferenceClient(attached(run_folder).inference_address) as client:
        for _ in range(20):
            client.predict("probes", IMAGES)
        # A worker reports its figures a second later at the latest.
        end = time.monotonic() + 10
        while versions(run_folder)["1.1"][0] == 1:
            assert time.monotonic() < end, reports
            client.predict("probes", IMAGES)
            only_shown.step()
            scaler.step()
    assert "1 worker -> 2: utilisation " in reports[-1]
    with attached(run_folder).management() as management:
        pids = [worker.pid for worker in management.describe("probes")[0].workers]
    assert [count_workers(pid) for pid in pids] == [2, 2], (
        "each knows with whom it shares the cores"
    )
    assert "requests/s: utilisation above 0.001" in reports[-1]
    assert any(", 0.0 requests/s" not in each for each in reports), "its requests are counted"
    end = time.monotonic() + 10
    while versions(run_folder)["1.1"][0] == 2:
        assert time.monotonic() < end, reports
        scaler.step()
        time.sleep(0.1)
    assert "2 workers -> 1" in reports[-1]
