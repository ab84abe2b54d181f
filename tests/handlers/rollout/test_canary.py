"""A canary answers its share of the requests, and the same clients always."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from probe_ensemble import ask, form, image, probes

from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.rollout.canary import is_assigned
from torchserve_ensemble.handlers.service import EnsembleService

SHARES = st.floats(0, 1)


@given(st.text(), SHARES, SHARES)
def test_who_is_assigned_stays_assigned_when_the_share_grows(
    key: str, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert is_assigned(key, high, "trees") or not is_assigned(key, low, "trees")
    assert is_assigned(key, 1, "trees")
    assert not is_assigned(key, 0, "trees")


@given(st.text(max_size=20), st.floats(0.01, 0.99))
def test_the_share_of_many_keys_is_the_share(prefix: str, share: float) -> None:
    num_keys = 2000
    assigned = sum(is_assigned(f"{prefix}{key}", share, "trees") for key in range(num_keys))
    # Six standard deviations: one false alarm in a billion.
    assert abs(assigned - share * num_keys) <= 6 * math.sqrt(share * (1 - share) * num_keys) + 1


def test_assignments_are_those_of_every_earlier_release() -> None:
    assigned = [key for key in "abcdefghij" if is_assigned(key, 0.5, "trees")]
    assert assigned == ["b", "d", "j"]
    assert assigned != [key for key in "abcdefghij" if is_assigned(key, 0.5, "birds")]


def canary(folder: Path, **settings: Any) -> EnsembleService:
    """Members a, b and c are current; the candidate is d alone, which sees light from 0.1 on."""
    return probes(
        folder,
        task="presence",
        bounds=(0.25, 0.5, 0.75, 0.1),
        policies={"default": "majority"},
        rollout={"mode": "canary", "new_members": ["d"], "members": ["d"], "share": 0.5},
        **settings,
    )


def keys(service: EnsembleService) -> tuple[str, str]:
    """A key of the candidate and one of the current ensemble."""
    name = service.spec.name
    of_candidate = next(key for key in map(str, range(99)) if is_assigned(key, 0.5, name))
    return of_candidate, next(key for key in map(str, range(99)) if not is_assigned(key, 0.5, name))


def test_each_key_has_a_side_and_the_answer_names_it(tmp_path: Path) -> None:
    service = canary(tmp_path)
    of_candidate, of_current = keys(service)
    answer = ask(service, image(0.2), sticky_key=of_candidate)
    assert answer["model"]["rollout"] == "candidate"
    assert answer["predictions"][0]["label"] == "bright"
    assert list(answer["predictions"][0]["members"]) == ["d"]
    answer = ask(service, image(0.2), sticky_key=of_current)
    assert answer["model"]["rollout"] == "current"
    assert answer["predictions"][0]["label"] == "dark"
    assert list(answer["predictions"][0]["members"]) == ["a", "b", "c"]


def test_formats_without_a_model_name_the_side_in_a_header(tmp_path: Path) -> None:
    service = canary(tmp_path)
    (response,) = service.answer([form(image(0.2), sticky_key=keys(service)[0], response="lines")])
    assert response.headers["x-ensemble-rollout"] == "candidate"


def test_both_sides_of_one_batch_are_answered(tmp_path: Path) -> None:
    service = canary(tmp_path)
    requests = [
        RawRequest([Part("file", "image/png", image(0.2))], {"sticky-key": key})
        for key in keys(service) * 3
    ]
    labels = [json.loads(each.body)["predictions"][0]["label"] for each in service.answer(requests)]
    assert labels == ["bright", "dark"] * 3


def test_requests_that_choose_for_themselves_take_no_part(tmp_path: Path) -> None:
    service = canary(tmp_path)
    of_candidate, _ = keys(service)
    for options in ({"policy": "any"}, {"members": "a"}, {"weights": '{"a": 2}'}):
        answer = ask(service, image(0.2), sticky_key=of_candidate, **options)
        assert "rollout" not in answer["model"]
        assert "d" not in answer["predictions"][0]["members"]


def test_clients_cannot_choose_a_new_member(tmp_path: Path) -> None:
    (response,) = canary(tmp_path).answer([form(image(0.2), members="d")])
    assert response.status == 400
    assert b"the members are a, b, c" in response.body


def test_without_key_and_identifier_the_current_ensemble_answers(tmp_path: Path) -> None:
    service = canary(tmp_path)
    assert ask(service, image(0.2))["model"]["rollout"] == "current"


def test_the_current_ensemble_answers_if_the_candidate_fails(tmp_path: Path) -> None:
    service = canary(tmp_path, arguments={"d": {"raises_above": 0.6}})
    service.recorder.start("9000")
    of_candidate, _ = keys(service)
    answer = ask(service, image(0.9), sticky_key=of_candidate)
    assert answer["model"]["rollout"] == "fallback"
    assert answer["predictions"][0]["label"] == "bright"
    # With on_error=skip a failed sample would leave a gap in the answer.
    answer = ask(service, image(0.9), image(0.2), sticky_key=of_candidate, on_error="skip")
    assert [each["label"] for each in answer["predictions"]] == ["bright", "dark"]
    (refused,) = service.answer([form(b"no image", sticky_key=of_candidate)])
    assert refused.status == 400
    service.recorder.collect()
    counts = {
        change.labels["side"]: change.value
        for change in service.recorder.meter.take()
        if change.name == "ensemble_rollout_requests_total"
    }
    assert counts == {"candidate": 0, "current": 0, "fallback": 2}


def test_cached_scores_serve_both_sides(tmp_path: Path) -> None:
    service = canary(tmp_path, runtime={"score_cache_mb": 1})
    of_candidate, of_current = keys(service)
    for key, label in ((of_candidate, "bright"), (of_current, "dark")) * 2:
        assert ask(service, image(0.2), sticky_key=key)["predictions"][0]["label"] == label
