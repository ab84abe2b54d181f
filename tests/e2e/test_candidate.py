"""A candidate beside the current ensemble on a real TorchServe: as a shadow, and as a canary."""

from __future__ import annotations

import io
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import requests
from probe_ensemble import CODE, image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.rollout.canary import is_assigned
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

SLEEP, RAISE, HANG = 0.35, 0.65, 0.85
"""Brightness of the images at which the new member of the shadow misbehaves."""

SLEEP_SECONDS, DEADLINE_SECONDS, SHARE = 1.0, 0.2, 0.25

TROUBLE = f"""
import time

class Trouble(Probe):
    def forward(self, batch):
        for brightness in batch.mean(dim=(1, 2, 3)).tolist():
            if abs(brightness - {SLEEP}) < 0.01:
                time.sleep({SLEEP_SECONDS})
            if abs(brightness - {RAISE}) < 0.01:
                raise RuntimeError("no")
            while abs(brightness - {HANG}) < 0.01:
                pass
        return super().forward(batch)
"""


def build(folder: Path, store: Path, name: str, rollout: dict[str, object]) -> None:
    """Build an archive whose members a, b and c are current, and d belongs to the candidate."""
    probes(
        folder,
        task="presence",
        bounds=(0.25, 0.5, 0.75, 0.15),
        policies={"default": "majority"},
        rollout={"new_members": ["d"], "members": ["d"], **rollout},
    )
    (folder / "probe.py").write_text(CODE + TROUBLE)
    spec = json.loads((folder / "ensemble.yaml").read_text())
    spec |= {"name": name, "serving": {"batch_size": 1}}
    spec["members"][3]["architecture"] = "probe.py:Trouble"
    (folder / "ensemble.yaml").write_text(json.dumps(spec))
    build_archive(folder / "ensemble.yaml", store)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `shadowed`, whose new member misbehaves, and of `canary`."""
    store = tmp_path_factory.mktemp("store")
    rollouts: dict[str, dict[str, object]] = {
        "shadowed": {"mode": "shadow", "deadline_ms": 1000 * DEADLINE_SECONDS},
        "canary": {"mode": "canary", "share": SHARE},
    }
    for name, rollout in rollouts.items():
        build(tmp_path_factory.mktemp(name), store, name, rollout)
    names = tuple(f"{name}-1.0.mar" for name in rollouts)
    settings = ServerSettings(store, names, overrides=throw_away())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_ENSEMBLE_DECISION_LOG", "json")
        with Server.start(settings, tmp_path_factory.mktemp("run")) as started:
            started.wait_ready()
            yield started


class Shadowed:
    """The model `shadowed` of a server, and what was sent to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.num_sent = 0

    def post(self, *levels: float) -> requests.Response:
        """Send images of these brightnesses, and check the answer."""
        files = [("file", ("a.png", image(level), "image/png")) for level in levels]
        url = f"{self.server.inference_address}/predictions/shadowed"
        answer = requests.post(url, files=files, timeout=60)
        self.num_sent += len(levels)
        assert answer.status_code == 200, answer.text
        for level, prediction in zip(levels, answer.json()["predictions"], strict=True):
            assert prediction["label"] == ("bright" if level >= 0.5 else "dark")
            assert list(prediction["members"]) == ["a", "b", "c"]
        return answer

    def seconds_of(self, level: float) -> float:
        """Send an image of this brightness, and return how long the answer took."""
        started = time.monotonic()
        self.post(level)
        return time.monotonic() - started

    def wait_until_compared(self) -> None:
        """Send images until the shadow compares them (again), and it is done with all of them."""
        before = compare(self.server, "shadowed")["compared"]

        def is_compared() -> bool:
            self.post(0.1)
            return bool(compare(self.server, "shadowed")["compared"] > before)

        wait_until(is_compared, "the shadow does not run")
        wait_until(lambda: self.num_counted() == self.num_sent, "a sample is not counted")

    def num_counted(self) -> int:
        """Number of samples that were compared, failed or dropped."""
        report = compare(self.server, "shadowed")
        return int(report["compared"] + report["failed"] + sum(report["dropped"].values()))

    def count(self, kind: str) -> int:
        """Number of samples that failed, or were late."""
        report = compare(self.server, "shadowed")
        return int(report["failed"] if kind == "failed" else report["dropped"].get(kind, 0))


@pytest.fixture(scope="module")
def shadowed(server: Server) -> Shadowed:
    return Shadowed(server)


def compare(server: Server, name: str) -> Any:
    """What the verb `compare --json` prints about a model."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["compare", name, "--run-folder", str(server.run_folder), "--json"]) == 0
    return json.loads(printed.getvalue())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_compare_and_feedback_print_what_was_sent(
    shadowed: Shadowed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = shadowed.server
    shadowed.wait_until_compared()
    before = compare(server, "shadowed")
    # The majority of a, b and c sees light from 0.5 on, and d from 0.15 on.
    answer = shadowed.post(0.05, 0.1, 0.2, 0.2, 0.2, 0.95, 0.6)
    wait_until(lambda: shadowed.num_counted() == shadowed.num_sent, "no comparison")
    after = compare(server, "shadowed")
    assert after["compared"] == before["compared"] + 7
    assert after["agreed"] == before["agreed"] + 4
    assert after["agreement"] == after["agreed"] / after["compared"]
    low, high = after["agreement_interval"]
    assert low < after["agreement"] < high
    cells = {(each["current"], each["candidate"]): each["samples"] for each in after["confusion"]}
    assert cells["dark", "bright"] == 3
    assert cells["bright", "bright"] == 2
    assert sum(cells.values()) == after["compared"]
    assert after["candidate_seconds"]["batches"] == before["candidate_seconds"]["batches"] + 1
    assert main(["compare", "shadowed", "--run-folder", str(server.run_folder)]) == 0
    printed = capsys.readouterr().out
    assert f"of {after['compared']} samples (95 % interval" in printed
    assert "current \\ candidate" in printed
    # All of these images are bright, people say.
    names = [each["sample"] for each in answer.json()["predictions"]]
    labels = tmp_path / "labels.csv"
    request_id = answer.headers["x-request-id"]
    rows = ["request_id,sample,label", *(f"{request_id},{name},bright" for name in names)]
    labels.write_text("\n".join(rows))
    verb = ["feedback", "shadowed", "--run-folder", str(server.run_folder), "--data", str(labels)]
    assert main([*verb, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["labelled"], found["unknown"]) == (7, 0)
    assert (found["current"]["right"], found["candidate"]["right"]) == (2, 5)
    assert (found["only_current_right"], found["only_candidate_right"]) == (0, 3)
    assert main(verb) == 0
    assert "3 times only the candidate" in capsys.readouterr().out


@pytest.mark.long
def test_a_shadow_in_trouble_neither_delays_nor_fails_an_answer(shadowed: Shadowed) -> None:
    shadowed.wait_until_compared()
    usual = statistics.median(shadowed.seconds_of(0.1) for _ in range(40))
    for trouble, kind in ((RAISE, "failed"), (SLEEP, "late"), (HANG, "late")):
        during: list[float] = []
        before = shadowed.count(kind)

        def is_counted(
            level: float = trouble,
            kind: str = kind,
            during: list[float] = during,
            before: int = before,
        ) -> bool:
            during += [shadowed.seconds_of(each) for each in (level, *[0.1] * 10)]
            return shadowed.count(kind) > before

        wait_until(is_counted, f"{trouble} is not counted as {kind}")
        # A shadow that delayed an answer would delay it by the time for which it sleeps.
        assert statistics.median(during) < 3 * usual, trouble
        assert max(during) < SLEEP_SECONDS / 2, trouble
        # A process that hangs is ended, and another one goes on.
        shadowed.wait_until_compared()


def ask_canary(server: Server, level: float, **headers: str) -> requests.Response:
    answer = requests.post(
        f"{server.inference_address}/predictions/canary",
        data=image(level),
        headers={"Content-Type": "image/png", **headers},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


def test_a_canary_answers_its_share(server: Server) -> None:
    num_requests = 200
    sides: Counter[str] = Counter()
    for _ in range(num_requests):
        answer = ask_canary(server, 0.2)
        side = answer.json()["model"]["rollout"]
        assert answer.headers["x-ensemble-rollout"] == side
        expected = {"candidate": "bright", "current": "dark"}[side]
        assert answer.json()["predictions"][0]["label"] == expected
        sides[side] += 1
    # Five standard deviations: one false alarm in a million.
    spread = 5 * math.sqrt(SHARE * (1 - SHARE) * num_requests)
    assert abs(sides["candidate"] - SHARE * num_requests) < spread
    for number in range(40):
        key = f"client-{number}"
        answers = {
            ask_canary(server, 0.2, **{"sticky-key": key}).json()["model"]["rollout"]
            for _ in range(2)
        }
        assert answers == {"candidate" if is_assigned(key, SHARE, "canary") else "current"}, key
    key = next(key for key in map(str, range(99)) if is_assigned(key, SHARE, "canary"))
    answer = ask_canary(server, RAISE, **{"sticky-key": key}).json()
    assert answer["model"]["rollout"] == "fallback"
    assert answer["predictions"][0]["label"] == "bright"
    wait_until(
        lambda: compare(server, "canary")["sides"].get("fallback") == 1, "no fallback is counted"
    )
    assert sum(compare(server, "canary")["sides"].values()) == num_requests + 80 + 1
