"""Tests of the fuzzers: seeds are no findings, slow inputs are, and short runs find nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bombs import BOMBS
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import targets
from fuzzing.encoding import decode_request, encode_request
from fuzzing.mutation import json_mutator, request_mutator
from fuzzing.targets import TARGETS, Finding, Target
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest

_RUNS = 2_000


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.long
def test_every_seed_is_answered_as_promised(name: str) -> None:
    for seed in TARGETS[name].corpus():
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", ["policy", "options", "infer"])
@pytest.mark.long
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="Atheris has wheels for Linux on x86-64 alone")
    command = [sys.executable, "-m", "fuzzing", name, f"--runs={_RUNS}", "--seed=1"]
    command += ["--seconds=60", f"--findings={tmp_path}"]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": tests},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_slow_input_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, targets.MAX_CPU_SECONDS + 1))
    monkeypatch.setattr(targets.time, "process_time", lambda: next(times))
    with pytest.raises(Finding, match="took 3.0 s"):
        Target(lambda data: None, tuple).check(b"")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request(data: bytes) -> None:
    request = decode_request(data)
    assert decode_request(encode_request(request)) == request


def test_a_request_survives_its_encoding() -> None:
    parts = [Part("file", "image/png", b"a"), Part("policy", "", b"any"), Part("ö", "x/y", b"")]
    request = RawRequest(parts, {"on-error": "skip", "x-own": "ü"})
    assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize("maker", [json_mutator, request_mutator])
def test_changes_are_many_and_within_the_maximum_length(maker: object) -> None:
    change = maker(lambda data, size: data[:size])  # type: ignore[operator]
    seed = b'{"policy": "any", "weights": {"a": 1}, "members": ["a", "b"]}'
    data = (
        seed
        if maker is json_mutator
        else encode_request(RawRequest([Part("body", "application/json", seed)]))
    )
    changed = {change(data, 200, number) for number in range(200)}
    assert len(changed) > 50
    assert max(map(len, changed)) <= 200


def test_no_two_bombs_have_the_same_name() -> None:
    names = [bomb.name for bomb in BOMBS]
    assert len(set(names)) == len(names)
    assert all(name.isprintable() and " " not in name for name in names)
