"""Arguments of the command line: options may stand anywhere."""

from __future__ import annotations

import argparse

import pytest

from torchserve_ensemble.cli import _parse, main, parser
from torchserve_ensemble.commands.predict import _per_request


def _parsed(arguments: list[str]) -> argparse.Namespace:
    return _parse(parser(), arguments)


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
        ["describe", "digits", "1.0", "more"],
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


@pytest.mark.parametrize("workers", ["-1", "two", "1.5"])
def test_a_wrong_number_of_workers_is_named(
    workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["scale", "digits", workers])
    message = capsys.readouterr().err
    assert f"argument WORKERS: '{workers}' is no number of workers" in message
    assert "or 0 to end all of them" in message


def test_every_verb_and_every_option_has_a_help() -> None:
    (verbs,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, verb_parser in verbs.choices.items():
        assert verb_parser.description, verb
        for action in verb_parser._actions:
            assert action.help, (verb, action)
