"""An operating point in a spec that people wrote and go on reading."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from probe_ensemble import probes

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.deployment import catalogue
from torchserve_ensemble.handlers.policies import (
    Catalogue,
    Panel,
    StackingModel,
    definitions,
    load_fitted,
    parse_policy,
)
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.tuning.fitting import FittedParameters
from torchserve_ensemble.tuning.policy_text import (
    has_thresholds,
    lacks_model,
    weighs_members,
    with_model,
)
from torchserve_ensemble.tuning.writing import side_effects, write_operating_point

INDENTED = """\
# Two probes of brightness.
name: probes   # the endpoint
version: "1.0"
task: presence
labels: [dark, bright]
preprocessing:
  small: {resize: [2, 2]}

members:
  # the careful one
  - name: a
    weights: a.safetensors
    architecture: probe.py:Probe
    arguments: {task: presence}
    temperature: 2.0  # fitted by hand
  - name: b
    weights: b.safetensors
    architecture: probe.py:Probe
    arguments: {task: presence}

policies:
  default: mean
  named:
    careful: mean(threshold=0.2)  # asked for by the clinic
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # The folder above belongs to this test, too: nothing may be written there.
    folder = tmp_path / "ensemble"
    folder.mkdir()
    probes(folder, task="presence", bounds=(0.3, 0.7))
    (folder / "ensemble.yaml").write_text(INDENTED)
    return folder / "ensemble.yaml"


def fitted(
    temperatures: tuple[float, float] = (1.5, 1.0), **models: StackingModel
) -> FittedParameters:
    return FittedParameters(temperatures, torch.tensor([0.25, 2.0]), models)


def stacking(value: float = 0.5) -> StackingModel:
    return StackingModel(("a", "b"), torch.full((1, 2), value), torch.zeros(1))


def write(path: Path, policy: str, fit: FittedParameters, name: str = "tuned") -> str:
    return write_operating_point(
        path,
        name=name,
        policy=policy,
        fitted=fit,
        metrics={"recall": 0.9123456789, "auroc": float("nan")},
        data_name="ward",
        data_digest="sha256:12",
    )


def test_only_lines_that_mean_something_new_change(path: Path) -> None:
    assert write(path, "mean(threshold=0.31)", fitted()) == "mean(threshold=0.31)"
    after = path.read_text().splitlines()
    before = INDENTED.splitlines()
    assert [line for line in before if line not in after] == [
        "    temperature: 2.0  # fitted by hand"
    ]
    assert "    temperature: 3.0  # fitted by hand" in after
    assert [line for line in after if line not in before] == [
        "    temperature: 3.0  # fitted by hand",
        "    tuned: mean(threshold=0.31)",
        "provenance:",
        "  metrics:",
        "    tuned on ward:",
        "      recall: 0.912346",
        "  tuning_data: sha256:12",
    ]
    spec = load_spec(path)
    assert spec.members[0].temperature == 3
    assert spec.policies.named == {
        "careful": "mean(threshold=0.2)",
        "tuned": "mean(threshold=0.31)",
    }


def test_lists_that_are_not_indented_stay_so(path: Path) -> None:
    flat = INDENTED.replace("\n  - name", "\n- name").replace("\n    ", "\n  ")
    flat = flat.replace("  # the careful one\n", "").replace("\n  careful:", "\n    careful:")
    path.write_text(flat)
    write(path, "any", fitted((1.0, 1.0)))
    assert [line for line in flat.splitlines() if line not in path.read_text().splitlines()] == []


def test_the_guarantee_is_written_and_ends_with_the_temperatures_that_it_was_shown_with(
    path: Path,
) -> None:
    def tune_again(
        name: str, policy: str, fit: FittedParameters, guarantee: str | None
    ) -> list[str]:
        effects = side_effects(load_spec(path), name, policy, fit)
        write_operating_point(
            path,
            name=name,
            policy=policy,
            fitted=fit,
            metrics={"recall": 0.95},
            data_name="ward",
            data_digest="sha256:12",
            guarantee=guarantee,
        )
        return [effect for effect in effects if "guarantee" in effect]

    same = fitted((1.0, 1.0))
    assert tune_again("tuned", "any", same, "Guaranteed: recall>=0.9.") == []
    assert load_spec(path).provenance.guarantees == {"tuned": "Guaranteed: recall>=0.9."}
    assert tune_again("weighted", "weighted_mean", same, "Guaranteed: f1>=0.8.") == []
    assert load_spec(path).provenance.guarantees.keys() == {"tuned", "weighted"}
    (effect,) = tune_again("other", "weighted_mean", same, None)
    assert "guarantees of weighted were removed" in effect
    assert load_spec(path).provenance.guarantees.keys() == {"tuned"}
    (effect,) = tune_again("more", "any", fitted((1.5, 1.0)), "Guaranteed: recall>=0.5.")
    assert "guarantees of tuned were removed" in effect
    assert load_spec(path).provenance.guarantees.keys() == {"more"}
    assert tune_again("more", "any", same, None) == []
    assert "guarantees" not in path.read_text()


def test_weights_are_written_for_a_policy_that_weighs(path: Path) -> None:
    write(path, "weighted_mean(threshold=0.4)", fitted())
    assert [member.voting_weight for member in load_spec(path).members] == [0.25, 2.0]


@pytest.mark.parametrize(
    "policy",
    ['member("weighted_a") >= 0.3', "weighted_a", 'any(weighted_a, member("weighted_a-2"))'],
)
def test_a_member_with_the_name_of_a_policy_weighs_nothing(path: Path, policy: str) -> None:
    text = INDENTED.replace("name: a\n", "name: weighted_a\n")
    path.write_text(text.replace("name: b\n", "name: weighted_a-2\n"))
    write(path, policy, fitted((1.0, 1.0)))
    assert all(member.voting_weight == 1 for member in load_spec(path).members)


@pytest.mark.parametrize(
    "policy", ["weighted_mean >= 0.4", "any(a, b) and not weighted_mean(a, b)"]
)
def test_a_part_of_an_expression_weighs_too(path: Path, policy: str) -> None:
    write(path, policy, fitted())
    assert [member.voting_weight for member in load_spec(path).members] == [0.25, 2.0]


def test_the_policies_that_weigh_are_known() -> None:
    """A policy weighs exactly if other weights can give other scores."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand((3, 50, 4), generator=generator).softmax(dim=2)
    panel = Panel(
        task=Task.CLASSIFICATION,
        member_names=("a", "b", "c"),
        weights=torch.ones(3),
        member_thresholds=torch.full((3, 4), 0.5),
        thresholds=torch.full((4,), 0.5),
    )
    weighed = replace(panel, weights=torch.tensor([5.0, 1.0, 0.5]))
    parameters = {"average_of_maximum": "(buckets=2)", "maximum_of_average": "(buckets=2)"}
    parameters |= {
        "at_least": "(k=2)",
        "trimmed_mean": "(fraction=0.3)",
        "cascade": "(confidence=0.5)",
    }
    weigh = set()
    for known in definitions():
        if Task.CLASSIFICATION not in known.tasks or known.fitted is not None:
            continue
        text = known.name + parameters.get(known.name, "")
        bound = parse_policy(text, {}, Catalogue(task=panel.task, member_names=panel.member_names))
        first, second = (
            bound.combine(each.ballot(scores, scores.log())) for each in (panel, weighed)
        )
        assert torch.equal(first.scores, second.scores) != weighs_members(text), text
        weigh |= {text} if weighs_members(text) else set()
    assert weigh == {"weighted_mean", "weighted_vote"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("stacking", 'stacking(model="m")'),
        ("stacking()", 'stacking(model="m")'),
        ("stacking(a, b)", 'stacking(a, b, model="m")'),
        ("stacking( threshold=0.3)", 'stacking( model="m", threshold=0.3)'),
        ("stacking >= 0.3", 'stacking(model="m") >= 0.3'),
        (
            "stacking and not stacking(threshold=0.3)",
            'stacking(model="m") and not stacking(model="m", threshold=0.3)',
        ),
        ('stacking(model="own")', 'stacking(model="own")'),
        ('any(stacking, member("stacking"))', 'any(stacking, member("stacking"))'),
        ('member("stacking_b") >= 0.3', 'member("stacking_b") >= 0.3'),
        ("stacking-b", "stacking-b"),
        ("2nd-stacking", "2nd-stacking"),
    ],
)
def test_a_fitted_model_goes_where_its_policy_stands(policy: str, expected: str) -> None:
    assert with_model(policy, "stacking", "m") == expected
    assert lacks_model(policy, "stacking") == (policy != expected)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("any", False),
        ("at_least(k=2)", False),
        ('member("low-threshold")', False),
        ("low-threshold", False),
        ("any(threshold, confidence)", False),
        ("mean(threshold=0.2)", True),
        ("mean(min_confidence=0.2)", True),
        ("cascade(confidence=0.9)", True),
        ("a >= 0.2", True),
        ("not (a or mean < 0.2)", True),
    ],
)
def test_thresholds_in_a_text(policy: str, expected: bool) -> None:
    assert has_thresholds(policy) is expected


def test_a_fitted_model_lies_beside_the_spec_under_the_policys_name(path: Path) -> None:
    text = write(path, "stacking(threshold=0.4)", fitted(stacking=stacking()))
    assert text == 'stacking(model="tuned-stacking", threshold=0.4)'
    spec = load_spec(path)
    assert spec.policies.fitted == {"tuned-stacking": "fitted/tuned-stacking.safetensors"}
    assert "fitted/tuned-stacking.safetensors" in spec.files()
    loaded = load_fitted(path.parent / "fitted" / "tuned-stacking.safetensors")
    assert isinstance(loaded, StackingModel)
    assert torch.equal(loaded.coefficients, stacking().coefficients)


def test_two_models_of_a_kind_live_side_by_side(path: Path) -> None:
    write(path, "stacking", fitted(stacking=stacking(0.5)))
    write(path, "stacking", fitted(stacking=stacking(2.0)), name="other")
    spec = load_spec(path)
    offered = catalogue(spec, path.parent)
    scores = torch.full((2, 1, 1), 0.5)
    from torchserve_ensemble.handlers.decisions.choosing import Chooser

    panel = Chooser(spec, offered, {}).panel
    first, second = (
        parse_policy(name, {}, offered).combine(panel.ballot(scores)).scores.item()
        for name in ("tuned", "other")
    )
    assert first == pytest.approx(torch.tensor(0.5).sigmoid().item())
    assert second == pytest.approx(torch.tensor(2.0).sigmoid().item())


@pytest.mark.parametrize("policy", ["meen", "at_least(k=3)", "stacking"])
def test_a_policy_that_does_not_work_is_not_written(path: Path, policy: str) -> None:
    with pytest.raises(SpecError):
        write(path, policy, fitted())
    assert path.read_text() == INDENTED
    assert not list(path.parent.glob("*.partial"))


def files_below(folder: Path) -> dict[str, bytes]:
    """What every file holds; folders are there with nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("stacking(threshold=7)", "tuned"),
        ("stacking and meen", "tuned"),
        ("stacking", "../tuned"),
        ("stacking", "with space"),
        # One name to file systems that do not tell capitals.
        ("stacking", "Tuned"),
    ],
)
def test_nothing_changes_where_the_spec_would_be_no_good(
    path: Path, policy: str, name: str
) -> None:
    write(path, "stacking", fitted(stacking=stacking(0.5)))
    before = files_below(path.parent.parent)
    with pytest.raises(SpecError):
        write(path, policy, fitted(stacking=stacking(2.0)), name=name)
    assert files_below(path.parent.parent) == before


def test_a_model_that_does_not_fit_leaves_no_folder_behind(path: Path) -> None:
    before = files_below(path.parent)
    foreign = StackingModel(("a", "z"), torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(SpecError, match="was fitted with members a, z"):
        write(path, "stacking", fitted(stacking=foreign))
    assert files_below(path.parent) == before


@pytest.mark.parametrize("already", [True, False])
def test_a_spec_that_cannot_be_replaced_keeps_its_models(
    path: Path, already: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if already:
        write(path, "stacking", fitted(stacking=stacking(0.5)))
    before = files_below(path.parent)
    replace_file = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(28, "No space left on device")
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SpecError, match=r"No space left on device.*nothing was changed"):
        write(path, "stacking", fitted(stacking=stacking(2.0)))
    assert files_below(path.parent) == before


def test_a_folder_of_models_that_leads_elsewhere_is_refused(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (path.parent / "fitted").symlink_to(elsewhere)
    with pytest.raises(SpecError):
        write(path, "stacking", fitted(stacking=stacking()))
    assert not list(elsewhere.iterdir())
    assert path.read_text() == INDENTED


def test_nothing_is_left_beside_what_was_written(path: Path) -> None:
    before = files_below(path.parent)
    for value in (0.5, 2.0):
        write(path, "stacking", fitted(stacking=stacking(value)))
    added = files_below(path.parent).keys() - before.keys()
    assert added == {"fitted", "fitted/tuned-stacking.safetensors"}


def test_a_link_and_the_file_mode_stay(path: Path) -> None:
    path.chmod(0o640)
    link = path.parent / "link.yaml"
    link.symlink_to(path)
    write(link, "any", fitted())
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "tuned" in load_spec(path).policies.named


def test_what_writing_changes_for_others_is_told(path: Path) -> None:
    spec = load_spec(path)
    (effect,) = side_effects(spec, "tuned", "any", fitted())
    assert "thresholds of careful were set for the old ones" in effect
    assert side_effects(spec, "careful", "any", fitted()) == []
    path.write_text(INDENTED.replace("careful: mean(threshold=0.2)", "low-threshold: any"))
    assert side_effects(load_spec(path), "tuned", "any", fitted()) == []
    path.write_text(
        INDENTED.replace("careful: mean(threshold=0.2)", "low-threshold: any").replace(
            "default: mean", "default: low-threshold"
        )
    )
    assert side_effects(load_spec(path), "tuned", "any", fitted()) == []
    assert side_effects(spec, "tuned", "any", fitted((1.0, 1.0))) == []
    path.write_text(INDENTED.replace("  default: mean\n", "  default: mean\n  allowed: [any]\n"))
    (effect,) = side_effects(load_spec(path), "tuned", "any", fitted((1.0, 1.0)))
    assert "until policies.allowed lists it" in effect
