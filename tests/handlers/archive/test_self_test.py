"""The comparison of answers with those at build, and the file that holds them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.archive.self_test import Probe, SelfTest, check
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError

PREDICTION: dict[str, Any] = {
    "label": "cat",
    "labels": ["cat"],
    "scores": {"cat": 0.8, "dog": 0.2},
    "members": {
        "a": {"label": "cat", "scores": {"cat": 0.9, "dog": 0.1}},
        "b": {"label": "cat", "scores": {"cat": 0.7, "dog": 0.3}},
    },
}
VALUES: dict[str, Any] = {"values": {"age": 40.0}, "members": {"a": {"values": {"age": 40.0}}}}


def self_test(prediction: dict[str, Any] = PREDICTION, *, stable: bool = True) -> SelfTest:
    probe = Probe("one.png", b"\x00\xff", prediction, stable)
    return SelfTest((probe,), {"include": "scores"}, 0.01)


def answer(**changed: Any) -> dict[str, dict[str, Any]]:
    return {"one.png": copy.deepcopy(PREDICTION) | changed}


def member(cat: float) -> dict[str, Any]:
    return {"label": "cat", "scores": {"cat": cat, "dog": 1 - cat}}


def test_equal_answers_pass() -> None:
    assert check(self_test(), answer()) == 0
    assert check(self_test(VALUES), {"one.png": VALUES}) == 0


@given(st.floats(0, 1))
def test_a_score_may_differ_by_the_tolerance_and_no_more(cat: float) -> None:
    answers = answer(members=PREDICTION["members"] | {"b": member(cat)})
    expected = max(abs(cat - 0.7), abs((1 - cat) - 0.3))
    if expected <= 0.01:
        assert check(self_test(), answers) == pytest.approx(expected)
    else:
        with pytest.raises(MemberError) as caught:
            check(self_test(), answers)
        assert "member 'b' differs by" in caught.value.message
        assert "the probe one.png, and the tolerance is 0.01" in caught.value.message


@pytest.mark.parametrize(
    "answered", [{}, {"scores": {"cat": 0.7}}, {"scores": {"cat": None, "dog": 0.3}}]
)
def test_a_member_without_scores_is_refused(answered: dict[str, Any]) -> None:
    with pytest.raises(MemberError, match="member 'b' gives no scores for the probe one.png"):
        check(self_test(), answer(members=PREDICTION["members"] | {"b": answered}))
    with pytest.raises(MemberError, match="gives no scores"):
        check(self_test(), {"one.png": {}})


@pytest.mark.parametrize(("age", "passes"), [(40.3, True), (40.5, False)])
def test_values_are_compared_by_their_scale(age: float, passes: bool) -> None:
    answers = {"one.png": {"values": {"age": age}, "members": {"a": {"values": {"age": age}}}}}
    if passes:
        assert check(self_test(VALUES), answers) == pytest.approx(0.3 / 40)
    else:
        with pytest.raises(MemberError, match="member 'a' differs by 0.013 from its scores"):
            check(self_test(VALUES), answers)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"label": "dog", "labels": ["dog"]}, "decides dog, and at build it decided cat"),
        ({"label": None, "labels": [], "abstained": True}, "decides nothing, and at build"),
    ],
)
def test_another_decision_is_refused_only_if_it_is_stable(
    changed: dict[str, Any], text: str
) -> None:
    with pytest.raises(MemberError, match=text):
        check(self_test(), answer(**changed))
    check(self_test(stable=False), answer(**changed))


def test_the_file_gives_the_self_test_back() -> None:
    text = json.dumps(self_test().to_json()).encode()
    assert SelfTest.from_text(text, source="a.mar") == self_test()


def test_large_probes_are_left_out_of_a_description() -> None:
    described = SelfTest.from_json(self_test().to_json(max_bytes=1), source="server")
    assert described.contents() == {}
    assert described.probes[0].prediction == PREDICTION


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 10_000,
        "[]",
        "null",
        "{}",
        '{"probes": [], "options": {}, "tolerance": 0.1}',
        '{"probes": [{}], "options": {}, "tolerance": 0.1}',
        '{"probes": 1, "options": {}, "tolerance": 0.1}',
    ],
)
def test_a_damaged_file_is_refused(text: str) -> None:
    with pytest.raises(ArchiveError, match="a.mar: the self-test is damaged"):
        SelfTest.from_text(text.encode(), source="a.mar")


def test_no_tolerance_lets_everything_pass() -> None:
    content = self_test().to_json() | {"tolerance": float("nan")}
    with pytest.raises(ArchiveError, match="no tolerance"):
        SelfTest.from_json(content, source="a.mar")
