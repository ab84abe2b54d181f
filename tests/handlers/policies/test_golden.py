"""Compares policies with results that the libraries crowd-kit and combo computed.

These libraries depend on transformers, pyarrow and numba, which are too much for the tests. The
golden file therefore has their results on fixed random inputs, and their versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ballots import combine, make_ballot

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import DawidSkeneModel

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "combination_references.json").read_text()
)
COMBO = GOLDEN["combo"]


def columns(members: int) -> np.ndarray:
    """Scores (M, N, 1) of the first members."""
    return np.array(COMBO["scores"])[:members, :, None]


def test_dawid_skene_is_crowd_kits() -> None:
    """The policy equals crowd-kit's expectation step, given the error rates that it learned."""
    golden = GOLDEN["dawid_skene"]
    ballot = make_ballot(Task.CLASSIFICATION, np.eye(3)[np.array(golden["votes"])])
    model = DawidSkeneModel(
        ballot.member_names, torch.tensor(golden["confusions"]), torch.tensor(golden["prior"])
    )
    ours = combine("dawid_skene", ballot, {"raters": model}).scores
    np.testing.assert_allclose(ours.numpy(), golden["posterior"], atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "reference"), [("mean", "average"), ("max", "maximization"), ("median", "median")]
)
def test_simple_combinations_are_combos(policy: str, reference: str) -> None:
    ours = combine(policy, make_ballot(Task.MULTILABEL, columns(7))).scores
    np.testing.assert_allclose(ours[:, 0].numpy(), COMBO[reference], atol=1e-6)


@pytest.mark.parametrize("buckets", [2, 3])
@pytest.mark.parametrize(
    ("policy", "reference"), [("average_of_maximum", "aom"), ("maximum_of_average", "moa")]
)
def test_buckets_are_combos(policy: str, reference: str, buckets: int) -> None:
    """combo shuffles the members before it splits them, so the golden file has their order too."""
    shuffled = columns(6)[COMBO["order_of_six"]]
    ours = combine(policy, make_ballot(Task.MULTILABEL, shuffled), buckets=buckets).scores
    np.testing.assert_allclose(ours[:, 0].numpy(), COMBO[f"{reference}_{buckets}"], atol=1e-6)


def test_plurality_is_combos_majority_vote_except_for_ties() -> None:
    votes = np.array(GOLDEN["majority_vote"]["votes"])
    ballot = make_ballot(Task.CLASSIFICATION, np.eye(3)[votes])
    decisions = combine("plurality", ballot).decisions
    assert decisions is not None
    counts = np.sort(np.eye(3)[votes].sum(axis=0), axis=1)
    clear = counts[:, 2] > counts[:, 1]
    expected = np.array(GOLDEN["majority_vote"]["labels"])
    assert clear.sum() > 20
    assert decisions.long().argmax(dim=1).numpy()[clear].tolist() == expected[clear].tolist()
