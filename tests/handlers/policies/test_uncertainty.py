"""Compares uncertainty and smoothing with values that were computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies.smoothing import moving_average, window_share
from torchserve_ensemble.handlers.policies.uncertainty import uncertainty


def test_two_members_that_are_sure_of_different_labels() -> None:
    scores = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    measured = uncertainty(scores, scores > 0.5, Task.CLASSIFICATION)
    assert measured.predictive_entropy.item() == pytest.approx(math.log(2))
    assert measured.mutual_information.item() == pytest.approx(math.log(2))
    assert measured.disagreement.item() == 1


def test_two_members_that_are_both_unsure_agree() -> None:
    scores = torch.full((2, 1, 1), 0.5)
    measured = uncertainty(scores, scores >= 0.5, Task.PRESENCE)
    assert measured.predictive_entropy.item() == pytest.approx(math.log(2))
    assert measured.mutual_information.item() == 0
    assert measured.disagreement.item() == 0


def test_regression_has_no_probabilities() -> None:
    with pytest.raises(ValueError, match="needs probabilities"):
        uncertainty(torch.ones(1, 1, 1), torch.ones(1, 1, 1).bool(), Task.REGRESSION)


def test_smoothing_over_frames() -> None:
    scores = torch.tensor([[0.0], [1.0], [1.0]])
    assert moving_average(scores, 0.5).flatten().tolist() == [0, 0.5, 0.75]
    flags = torch.tensor([[True], [False], [False], [True]])
    assert (window_share(flags, 3) > 0.5).flatten().tolist() == [True, False, False, False]
