"""Versions of a real server are replaced, also if it fails, or is killed, at any step.

``benchmarks.changes_under_load`` does the same for longer, and gives the table of
docs/operations.md.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from probe_ensemble import CODE, image
from safetensors.torch import save_file

from benchmarks.changes_under_load import asking
from benchmarks.watched_load import Operation, Question, essence, observe
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.management import ModelVersion
from torchserve_ensemble.serving.rollout import Rollout, RolloutSettings, Step, memory
from torchserve_ensemble.serving.run_folder import rollout_lock
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e
NAME = "probes"
BOUNDS = {"1.0": 0.3, "1.1": 0.7}
"""Version -> brightness from which on it answers "bright"."""


class Killed(BaseException):
    """Ends a rollout as `kill -9` does: nothing is undone."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, store = tmp_path_factory.mktemp("probes"), tmp_path_factory.mktemp("store")
    (folder / "probe.py").write_text(CODE)
    for version, bound in BOUNDS.items():
        save_file({"bound": torch.tensor(bound)}, folder / "a.safetensors")
        spec = {
            "name": NAME,
            "version": version,
            "task": "classification",
            "labels": ["dark", "bright"],
            "preprocessing": {"small": {"resize": [2, 2]}},
            "runtime": {"engine": "torch"},
            "members": [
                {
                    "name": "a",
                    "architecture": "probe.py:Probe",
                    "arguments": {"task": "classification"},
                    "weights": "a.safetensors",
                }
            ],
        }
        (folder / "ensemble.yaml").write_text(json.dumps(spec))
        build_archive(folder / "ensemble.yaml", store)
    return store


@pytest.fixture(scope="module")
def shared(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that every test must leave with version 1.0 alone, and one worker."""
    settings = ServerSettings(store, (f"{NAME}-1.0.mar",), overrides=throw_away())
    with Server.start(settings, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    assert _registered(shared) == {"1.0": True}, "a test left another version"


def _versions(server: Server) -> list[ModelVersion]:
    with server.management() as management:
        return management.versions(NAME)


def _registered(server: Server) -> dict[str, bool]:
    """Return for each registered version whether it is the default one."""
    return {each.version: each.default for each in _versions(server)}


def _verb(server: Server, *arguments: str) -> int:
    return main([*arguments, "--run-folder", str(server.run_folder)])


def _rollout(server: Server, version: str, *options: str) -> int:
    return _verb(server, "rollout", NAME, f"{NAME}-{version}.mar", *options)


def _answers(server: Server, version: str) -> bool:
    """Whether the default version is this one, and answers as it must."""
    with InferenceClient(server.inference_address, retries=0) as client:
        answer = client.predict(NAME, [("gray", image(0.5))])
    expected = "bright" if BOUNDS[version] < 0.5 else "dark"
    return bool(
        answer["model"]["version"] == version and answer["predictions"][0]["label"] == expected
    )


def _question(client: InferenceClient, *brightness: float) -> Question:
    images = [(f"{each}.png", image(each)) for each in brightness]
    answer = client.predict(NAME, images)
    answers = {}
    for version, bound in BOUNDS.items():
        labels = ["bright" if each > bound else "dark" for each in brightness]
        predictions = [{"label": label, "members": {"a": {"label": label}}} for label in labels]
        answers[version] = essence(answer | {"predictions": predictions})
    assert essence(answer) == answers["1.0"]
    return Question(images, answers)


def _killed_at(server: Server, step: Step, act: Callable[[Rollout], None]) -> None:
    def before(next_step: Step) -> None:
        if next_step is step:
            raise Killed

    with pytest.raises(Killed):
        act(Rollout(server, NAME, RolloutSettings(before_step=before)))


def test_clients_do_not_notice_a_rollout_a_rollback_and_a_scaling(server: Server) -> None:
    operations = [
        Operation("rollout", lambda: Rollout(server, NAME).roll_out(f"{NAME}-1.1.mar")),
        Operation("rollback", lambda: Rollout(server, NAME).roll_back()),
        Operation("scale", lambda: _verb(server, "scale", NAME, "2")),
        Operation("scale", lambda: _verb(server, "scale", NAME, "1")),
    ]
    with InferenceClient(server.inference_address, retries=0, timeout=20) as client:
        questions = [_question(client, 0.1, 0.5), _question(client, 0.9)]
        rows = observe(
            operations, asking(client, NAME), questions, num_clients=2, settle_seconds=0.5
        )
    assert [row.name for row in rows if row.times][1:] == ["rollout", "rollback", "scale"]
    for row in rows:
        assert row.surprises == []
        assert row.lost == {}
        assert row.wrong == 0
        assert row.requests > 10


@pytest.mark.long
def test_a_rollout_that_is_killed_before_every_step_is_continued(server: Server) -> None:
    for step in Step:
        _killed_at(server, step, lambda rollout: rollout.roll_out(f"{NAME}-1.1.mar"))
        switched = step is Step.DRAIN
        assert _answers(server, "1.1" if switched else "1.0")
        assert ("1.1" in _registered(server)) == (list(Step).index(step) > 2)
    Rollout(server, NAME).roll_out(f"{NAME}-1.1.mar")
    assert _registered(server) == {"1.1": True}
    Rollout(server, NAME).roll_out(f"{NAME}-1.1.mar")
    assert _registered(server) == {"1.1": True}, "nothing is left to do"
    for step in Step:
        if step is not Step.COMPARE:
            _killed_at(server, step, lambda rollout: rollout.roll_back("1.0"))
    Rollout(server, NAME).roll_back()
    assert _registered(server) == {"1.0": True}, "it is continued, though no version is named"
    assert _answers(server, "1.0")


def test_a_rollout_that_is_killed_while_the_worker_loads_is_continued_by_blue_green(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "torchserve_ensemble", "rollout", NAME, f"{NAME}-1.1.mar"]
    process = subprocess.Popen([*command, "--run-folder", str(server.run_folder)])
    try:
        deadline = time.monotonic() + 60
        while "1.1" not in _registered(server):
            assert time.monotonic() < deadline
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _rollout(server, "1.1", "--strategy", "blue-green") == 0
    assert "1.0 still serves" in capsys.readouterr().out
    assert _registered(server) == {"1.0": True, "1.1": False}
    assert _answers(server, "1.0")
    assert _verb(server, "rollback", NAME) == 1
    assert "1.1 waits beside it" in capsys.readouterr().err
    assert _rollout(server, "1.1", "--promote", "--keep-old") == 0
    assert _registered(server) == {"1.0": False, "1.1": True}
    assert _rollout(server, "1.1") == 0
    assert _registered(server) == {"1.0": False, "1.1": True}, "what was kept is not removed"
    with server.management() as management:
        (kept,) = management.describe(NAME, "1.0")
    assert _verb(server, "rollback", NAME) == 0
    assert _answers(server, "1.0")
    (now,) = _versions(server)
    assert now.workers[0].pid == kept.workers[0].pid, "the old worker went on"
    assert now.max_workers == 1


def test_a_version_that_decides_otherwise_does_not_stay(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gray.png").write_bytes(image(0.5))
    (tmp_path / "bright.png").write_bytes(image(0.9))
    smoke = ("--smoke", str(tmp_path), "--min-agreement", "0.9")
    assert _rollout(server, "1.1", *smoke) == 1
    printed = capsys.readouterr()
    assert "the versions agree on 0.500 of the images" in printed.err
    assert "gray.png: bright -> dark" in printed.err
    assert "the rollout failed; probes 1.0 serves; 1.1 was removed" in printed.out
    assert _answers(server, "1.0")


def test_a_failure_after_the_switch_returns_to_the_old_version(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that is stopped by SIGSTOP cannot be drained."""
    assert _rollout(server, "1.1", "--strategy", "blue-green") == 0
    (worker,) = next(each for each in _versions(server) if each.default).workers
    process = psutil.Process(worker.pid)

    def stop_worker(step: Step) -> None:
        if step is Step.DRAIN:
            process.suspend()

    lines: list[str] = []
    settings = RolloutSettings(drain_timeout=0.5, before_step=stop_worker, report=lines.append)
    try:
        with pytest.raises(ServerError, match="still computes"):
            Rollout(server, NAME, settings).roll_out(f"{NAME}-1.1.mar", promote=True)
    finally:
        process.resume()
    assert lines[-1] == "the rollout failed; probes 1.0 serves; 1.1 was removed"
    assert _answers(server, "1.0")


def test_what_is_refused_before_anything_is_registered(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(memory, "available_bytes", lambda: 10**6)
        assert _rollout(server, "1.1") == 1
    assert "there is not enough memory for both versions side by side: 1 x " in (
        capsys.readouterr().err
    )
    with rollout_lock(server.run_folder):
        assert _rollout(server, "1.1") == 1
        assert _verb(server, "rollback", NAME) == 1
    assert capsys.readouterr().err.count("another process replaces a version") == 2
    assert _registered(server) == {"1.0": True}


def test_a_version_that_waits_can_be_aborted(server: Server) -> None:
    with server.management() as management:
        management.register(f"{NAME}-1.1.mar")
    assert _rollout(server, "1.1", "--abort") == 0
    assert _registered(server) == {"1.0": True}
    assert _rollout(server, "1.1", "--abort") == 1


def test_mistakes_change_nothing(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["rollout", "digits", f"{NAME}-1.1.mar"], "holds probes 1.1, not digits"),
        (["rollout", NAME, "none.mar"], "has no archive none.mar"),
        (["rollout", NAME, f"{NAME}-1.1.mar", "--promote"], "cannot be promoted"),
        (["rollout", NAME, f"{NAME}-1.0.mar", "--abort"], "is the default version already"),
        (["rollback", NAME], "no version of probes below 1.0"),
        (["rollback", NAME, "0.9"], "has no archive probes-0.9.mar"),
    ):
        assert _verb(server, *arguments) == 1
        assert message in capsys.readouterr().err
