"""Tests of fitted models: their files, matching by member name, and the policies that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ballots import bound, chosen, combine, make_ballot
from safetensors.torch import save_file

from torchserve_ensemble.handlers.base.errors import PolicyError, SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    ClassWeightsModel,
    DawidSkeneModel,
    FittedModel,
    StackingModel,
    load_fitted,
    save_fitted,
)

NAMES = ("m0", "m1")
STACKING = StackingModel(NAMES, torch.tensor([[4.0, -2.0]]), torch.tensor([-1.0]))
DAWID_SKENE = DawidSkeneModel(
    NAMES,
    torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]]),
    torch.tensor([0.7, 0.3]),
)
CLASS_WEIGHTS = ClassWeightsModel(NAMES, torch.tensor([[1.0, 0.0], [3.0, 1.0]]))


@pytest.mark.parametrize("model", [STACKING, DAWID_SKENE, CLASS_WEIGHTS])
def test_a_file_gives_the_model_back(model: FittedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_fitted(model, path)
    first = path.read_bytes()
    loaded = load_fitted(path)
    assert type(loaded) is type(model)
    assert loaded.member_names == NAMES
    save_fitted(loaded, path)
    assert path.read_bytes() == first


def test_files_without_a_fitted_model_are_refused(tmp_path: Path) -> None:
    missing, text, plain = (tmp_path / name for name in ("missing", "text", "plain"))
    text.write_text("coefficients: 1")
    save_file({"coefficients": torch.zeros(1, 2)}, plain)
    with pytest.raises(SpecError, match="no such file"):
        load_fitted(missing)
    for path in (text, plain):
        with pytest.raises(SpecError, match=f"{path.name}: not a fitted model"):
            load_fitted(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackingModel(NAMES, torch.zeros(1, 3), torch.zeros(1)), "one column for each"),
        (lambda: StackingModel(NAMES, torch.zeros(2, 2), torch.zeros(1)), "shape"),
        (lambda: StackingModel(NAMES, torch.full((1, 2), torch.nan), torch.zeros(1)), "finite"),
        (lambda: DawidSkeneModel(NAMES, torch.ones(2, 2, 2), torch.tensor([0.5, 0.5])), "add up"),
        (lambda: DawidSkeneModel(NAMES, torch.zeros(1, 2, 2), torch.tensor([0.5, 0.5])), "shape"),
        (lambda: ClassWeightsModel(NAMES, torch.tensor([[0.0], [0.0]])), "all 0"),
        (lambda: ClassWeightsModel(NAMES, torch.tensor([[2.0], [-1.0]])), "negative"),
    ],
)
def test_impossible_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_stacking_by_hand() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5], [0.2]], [[0.0], [0.9]]])
    outcome = combine("stacking", ballot, {"meta": STACKING})
    expected = torch.tensor([4 * 0.5 - 1, 4 * 0.2 - 2 * 0.9 - 1]).sigmoid()
    torch.testing.assert_close(outcome.scores.flatten(), expected)
    assert chosen(outcome) == [[0], []]


def test_members_are_matched_by_name() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5]], [[0.1]]])
    for name, model in (("stacking", STACKING), ("dawid_skene", DAWID_SKENE)):
        policy = bound(name, ballot, {"model": model})
        assert torch.equal(
            policy.combine(ballot.select([1, 0])).scores, policy.combine(ballot).scores
        )


def test_dawid_skene_ignores_a_member_that_votes_at_random() -> None:
    # m0 votes no; m1, whose votes are random, votes yes. Only the vote of m0 counts.
    ballot = make_ballot(Task.PRESENCE, [[[0.1]], [[0.9]]])
    policy = bound("dawid_skene", ballot, {"raters": DAWID_SKENE})
    expected = 0.3 * 0.2 / (0.3 * 0.2 + 0.7 * 0.9)
    assert policy.combine(ballot).scores.item() == pytest.approx(expected)
    assert policy.combine(ballot.select([0])).scores.item() == pytest.approx(expected)


def test_dawid_skene_gives_a_score_to_votes_that_it_considers_impossible() -> None:
    model = DawidSkeneModel(NAMES, torch.eye(2).expand(2, 2, 2), torch.tensor([0.5, 0.5]))
    ballot = make_ballot(Task.PRESENCE, [[[0.1]], [[0.9]]])
    assert combine("dawid_skene", ballot, {"m": model}).scores.item() == pytest.approx(0.5)


def test_class_weights_by_hand() -> None:
    ballot = make_ballot(Task.MULTILABEL, [[[0.8, 0.9]], [[0.4, 0.3]]])
    policy = bound("per_class_weights", ballot, {"weights": CLASS_WEIGHTS})
    assert policy.combine(ballot).scores[0].tolist() == pytest.approx([0.5, 0.3])
    with pytest.raises(PolicyError, match="m0 all have weight 0 for some label"):
        policy.combine(ballot.select([0]))


def test_the_only_model_of_a_kind_needs_no_name() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5]], [[0.1]]])
    models = {"meta": STACKING, "raters": DAWID_SKENE}
    assert bound("stacking", ballot, models).text == "stacking(model='meta')"
    with pytest.raises(PolicyError, match="parameter model is missing: one of a, b"):
        bound("stacking", ballot, {"a": STACKING, "b": STACKING})
    assert bound("stacking(model='b')", ballot, {"a": STACKING, "b": STACKING})
    with pytest.raises(PolicyError, match=r"model='raters' is no fitted stacking model"):
        bound("stacking(model='raters')", ballot, models)
    with pytest.raises(PolicyError, match="needs a fitted stacking model, and this deployment"):
        bound("stacking", ballot)


def test_models_fitted_with_other_members_are_refused() -> None:
    three = make_ballot(Task.PRESENCE, [[[0.5]], [[0.1]], [[0.1]]])
    with pytest.raises(PolicyError, match="not with m2"):
        bound("stacking", three, {"meta": STACKING})
    alone = three.select([0])
    with pytest.raises(PolicyError, match="m1 is missing"):
        bound("stacking", alone, {"meta": STACKING})
    two = make_ballot(Task.PRESENCE, [[[0.5]], [[0.1]]])
    with pytest.raises(PolicyError, match="m1 is missing"):
        bound("stacking", two, {"meta": STACKING}).combine(two.select([0]))


@pytest.mark.parametrize(
    ("text", "model"),
    [("stacking", STACKING), ("dawid_skene", DAWID_SKENE), ("per_class_weights", CLASS_WEIGHTS)],
)
def test_models_fitted_for_other_labels_are_refused(text: str, model: FittedModel) -> None:
    ballot = make_ballot(Task.CLASSIFICATION, torch.full((2, 1, 3), 1 / 3))
    with pytest.raises(PolicyError, match="fit it again for this ensemble"):
        combine(text, ballot, {"model": model})
