"""The section `rollout` of a spec is checked, and divides the members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.deployment import catalogue
from torchserve_ensemble.handlers.spec import EnsembleSpec, parse_spec


def spec(rollout: dict[str, Any], **settings: Any) -> EnsembleSpec:
    members = [
        {"name": name, "weights": f"{name}.pt", "preprocessing": "small"}
        for name in ("a", "b", "c")
    ]
    content = {
        "name": "trees",
        "version": "1.0",
        "task": "presence",
        "labels": ["no", "yes"],
        "preprocessing": {"small": {"resize": [4, 4]}, "large": {"resize": [8, 8]}},
        "members": members,
        "rollout": rollout,
        **settings,
    }
    return parse_spec(yaml.safe_dump(content))


def test_new_members_belong_to_the_candidate_alone() -> None:
    loaded = spec({"mode": "shadow", "new_members": ["c"], "members": ["a", "c"]})
    assert loaded.current_members == (0, 1)
    assert loaded.candidate_members == (0, 2)
    assert [member.name for member in loaded.only(loaded.current_members).members] == ["a", "b"]


def test_without_a_rollout_all_members_are_current(tmp_path: Path) -> None:
    loaded = spec({"mode": "shadow", "policy": "any"})
    assert loaded.current_members == loaded.candidate_members == (0, 1, 2)


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"mode": "shadow"}, "the candidate is the current ensemble"),
        ({"mode": "shadow", "policy": "mean"}, "the candidate is the current ensemble"),
        ({"mode": "canary", "policy": "any"}, "canary needs share"),
        ({"mode": "shadow", "policy": "any", "share": 0.1}, "belongs to canary"),
        ({"mode": "shadow", "new_members": ["d"]}, "there is no such member"),
        ({"mode": "shadow", "members": ["a", "a"]}, "names a member twice"),
        ({"mode": "shadow", "new_members": ["a", "b", "c"]}, "the current ensemble has none"),
        ({"mode": "shadow", "new_members": ["c"], "members": ["a"]}, "c would never run"),
        ({"mode": "canary", "policy": "any", "share": 1.5}, "share"),
        ({"mode": "mirror", "policy": "any"}, "mode"),
    ],
)
def test_mistakes_have_one_clear_message(rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec(rollout)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policies": {"lazy": True}}, "scores of all members"),
        ({"task": "regression", "labels": ["height"]}, "a regression has none"),
        ({"failures": {"min_members": 3}}, "the current ensemble has only 2 members"),
    ],
)
def test_a_shadow_needs_decisions_to_compare(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec({"mode": "shadow", "new_members": ["c"]}, **settings)


def test_a_new_member_of_a_shadow_has_the_preprocessing_of_a_current_one() -> None:
    members = [
        {"name": "a", "weights": "a.pt", "preprocessing": "small"},
        {"name": "b", "weights": "b.pt", "preprocessing": "large"},
    ]
    with pytest.raises(SpecError, match="must have the preprocessing of a current member"):
        spec({"mode": "shadow", "new_members": ["b"]}, members=members)
    spec({"mode": "canary", "new_members": ["b"], "share": 0.1}, members=members)


def test_the_candidates_policy_is_checked_with_its_own_members() -> None:
    loaded = spec({"mode": "shadow", "new_members": ["c"], "policy": "c and any"})
    assert catalogue(loaded).default == "mean"
    assert catalogue(loaded, candidate=True).default == "c and any"
    loaded = spec({"mode": "shadow", "members": ["a"], "policy": "c and any"})
    with pytest.raises(SpecError) as caught:
        catalogue(loaded, candidate=True)
    assert caught.value.place == ("rollout", "policy")
