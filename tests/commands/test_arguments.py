"""Arguments of the command line: options may stand anywhere."""

from __future__ import annotations

import pytest

from torchserve_ensemble.cli import _parsed
from torchserve_ensemble.commands.predict import _per_request


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "digits", "a.png", "b.png", "--policy", "any"],
        ["predict", "digits", "--policy", "any", "a.png", "b.png"],
        ["predict", "--policy", "any", "digits", "a.png", "b.png"],
        ["predict", "digits", "a.png", "--policy=any", "b.png"],
    ],
)
def test_options_stand_anywhere(arguments: list[str]) -> None:
    parsed = _parsed(arguments)
    assert parsed.names == ["digits", "a.png", "b.png"]
    assert parsed.policy == "any"


def test_archives_too() -> None:
    parsed = _parsed(["serve", "a.mar", "--timeout", "5", "b.mar"])
    assert parsed.models == ["a.mar", "b.mar"]


def test_standard_input_after_an_option() -> None:
    assert _parsed(["predict", "digits", "--policy", "any", "-"]).names == ["digits", "-"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "digits", "a.png", "--polcy", "any"],
        ["status", "digits"],
        ["describe", "digits", "more"],
    ],
)
def test_what_no_verb_takes_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parsed(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["smooth", "frame_order", "stream", "frames"])
def test_a_sequence_is_one_request(option: str) -> None:
    parsed = _parsed(["predict", "digits", "a.png", "--per-request", "1"])
    paths = ["a.png", "b.png", "c.png"]
    assert _per_request(parsed, paths, {}) == 1
    assert _per_request(parsed, paths, {option: "1"}) == 3
