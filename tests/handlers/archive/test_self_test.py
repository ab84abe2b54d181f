"""The comparison of answers with those at build, and the file that holds them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
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
PROBE = Probe(
    "one.png",
    b"\x00\xff",
    {"a": (0.9, 0.1), "b": (0.7, 0.3)},
    {"label": "cat", "labels": ["cat"]},
    decision_is_stable=True,
)
SELF_TEST = SelfTest((PROBE,), ("cat", "dog"), "scores", {"include": "scores"}, 0.01)
REGRESSION = SelfTest(
    (Probe("one.png", b"", {"a": (40.0,)}, {}, decision_is_stable=True),),
    ("age",),
    "values",
    {},
    0.01,
)


def answer(**changed: Any) -> dict[str, dict[str, Any]]:
    return {"one.png": copy.deepcopy(PREDICTION) | changed}


def member(cat: float) -> dict[str, Any]:
    return {"label": "cat", "scores": {"cat": cat, "dog": 1 - cat}}


def test_equal_answers_pass() -> None:
    assert check(SELF_TEST, answer()) == 0
    assert check(REGRESSION, {"one.png": VALUES}) == 0


@given(st.floats(0, 1))
def test_a_score_may_differ_by_the_tolerance_and_no_more(cat: float) -> None:
    answers = answer(members=PREDICTION["members"] | {"b": member(cat)})
    expected = max(abs(cat - 0.7), abs((1 - cat) - 0.3))
    if expected <= 0.01:
        assert check(SELF_TEST, answers) == pytest.approx(expected)
    else:
        with pytest.raises(MemberError) as caught:
            check(SELF_TEST, answers)
        assert "member 'b' differs by" in caught.value.message
        assert "the probe one.png, and the tolerance is 0.01" in caught.value.message


@pytest.mark.parametrize(
    "answered", [{}, {"scores": {"cat": 0.7}}, {"scores": {"cat": None, "dog": 0.3}}]
)
def test_a_member_without_scores_is_refused(answered: dict[str, Any]) -> None:
    with pytest.raises(MemberError, match="member 'b' gives no scores for the probe one.png"):
        check(SELF_TEST, answer(members=PREDICTION["members"] | {"b": answered}))
    with pytest.raises(MemberError, match="gives no scores"):
        check(SELF_TEST, {"one.png": {}})


@pytest.mark.parametrize(("age", "passes"), [(40.3, True), (40.5, False)])
def test_values_are_compared_by_their_scale(age: float, passes: bool) -> None:
    answers = {"one.png": {"values": {"age": age}, "members": {"a": {"values": {"age": age}}}}}
    if passes:
        assert check(REGRESSION, answers) == pytest.approx(0.3 / 40)
    else:
        with pytest.raises(MemberError, match="member 'a' differs by 0.013 from its scores"):
            check(REGRESSION, answers)


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
        check(SELF_TEST, answer(**changed))
    unstable = replace(PROBE, decision_is_stable=False)
    check(replace(SELF_TEST, probes=(unstable,)), answer(**changed))


def test_the_file_gives_the_self_test_back() -> None:
    text = json.dumps(SELF_TEST.to_json()).encode()
    assert SelfTest.from_text(text, source="a.mar") == SELF_TEST


def test_large_probes_are_left_out_of_a_description() -> None:
    described = SelfTest.from_json(SELF_TEST.to_json(max_bytes=1), source="server")
    assert described.contents() == {}
    assert described.probes[0].scores == PROBE.scores


PROBE_JSON = SELF_TEST.to_json()["probes"][0]


def changed(**keys: Any) -> str:
    return json.dumps(SELF_TEST.to_json() | keys)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 10_000,
        "[]",
        "null",
        "{}",
        changed(probes=[]),
        changed(probes=[{}]),
        changed(probes=1),
        changed(probes=[PROBE_JSON | {"scores": {}}]),
        changed(probes=[PROBE_JSON | {"content": "?"}]),
        changed(tolerance=0),
        changed(tolerance="NaN"),
        changed(tolerance=10**400),
        changed(options=None),
    ],
)
def test_a_damaged_file_is_refused(text: str) -> None:
    with pytest.raises(ArchiveError, match="a.mar: the self-test is damaged"):
        SelfTest.from_text(text.encode(), source="a.mar")
