"""Tests that fast computations equal the plain formulas, and avoid expensive operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ballots import ballots, bound, combine, label_tasks, make_ballot, without_deadline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    Ballot,
    DawidSkeneModel,
    Outcome,
    StackingModel,
    settled,
)
from torchserve_ensemble.handlers.policies.lazy import _outcome_of_counted_votes
from torchserve_ensemble.handlers.policies.uncertainty import disagreement, uncertainty


class Operations(TorchDispatchMode):
    """Records the torch operations that run while the context lasts.

    Attributes:
        largest_bytes: name of each operation -> bytes of its largest result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                size = each.numel() * each.element_size()
                self.largest_bytes[name] = max(self.largest_bytes.get(name, 0), size)
        return result


def classification(num_members: int, num_samples: int, num_labels: int, seed: int = 0) -> Ballot:
    """Make a ballot of random softmaxes, some of them rounded so that labels have equal scores."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_members, num_samples, num_labels)
    scores = torch.randn(shape, generator=generator).mul(3).softmax(dim=-1)
    scores[:, ::3] = (scores[:, ::3] * 50).round() / 50
    return make_ballot(Task.CLASSIFICATION, scores)


def pairs_that_differ(votes: Tensor) -> Tensor:
    """Compute the share of pairs of members with different votes, by comparing all pairs."""
    members = len(votes)
    differ = (votes.unsqueeze(0) != votes.unsqueeze(1)).any(dim=-1)
    return differ.sum(dim=(0, 1)).div(max(members * (members - 1), 1)).float()


class TestDisagreement:
    @without_deadline
    @given(ballot=ballots(label_tasks))
    def test_disagreement_is_the_share_of_pairs(self, ballot: Ballot) -> None:
        expected = pairs_that_differ(ballot.votes)
        assert torch.equal(disagreement(ballot.votes), expected)
        measured = uncertainty(ballot.scores, ballot.votes, ballot.task).disagreement
        assert torch.equal(measured, expected)

    @without_deadline
    @given(ballot=ballots(label_tasks))
    def test_the_entropies_are_those_of_all_scores_at_once(self, ballot: Ballot) -> None:
        def entropy(probabilities: Tensor) -> Tensor:
            if ballot.task is not Task.CLASSIFICATION:
                probabilities = torch.cat([probabilities, 1 - probabilities], dim=-1)
            return torch.special.entr(probabilities.clamp(0, 1)).sum(dim=-1)

        scores = ballot.scores.double()
        total, expected = entropy(scores.mean(dim=0)), entropy(scores).mean(dim=0)
        measured = uncertainty(ballot.scores, ballot.votes, ballot.task)
        assert torch.equal(measured.predictive_entropy, total.float())
        information = (total - expected).clamp(min=0).float()
        torch.testing.assert_close(measured.mutual_information, information, atol=1e-12, rtol=1e-6)

    @pytest.mark.parametrize("labels", [1, 7, 8, 9, 64, 65])
    def test_every_label_counts(self, labels: int) -> None:
        votes = torch.rand(6, 40, labels, generator=torch.Generator().manual_seed(1)) > 0.1
        for label in range(labels):
            alike = votes[:1].repeat(6, 1, 1)
            alike[2, :, label] ^= True
            for each in (votes, alike):
                assert torch.equal(disagreement(each), pairs_that_differ(each))

    def test_no_tensor_holds_all_pairs(self) -> None:
        ballot = classification(20, 8, 1000)
        values = ballot.scores.numel()
        policy = bound("mean(max_disagreement=0.5)", ballot)
        with Operations() as measured:
            policy.combine(ballot)
            uncertainty(ballot.scores, ballot.votes, ballot.task)
        float64_bytes = 8 * values
        assert max(measured.largest_bytes.values()) <= float64_bytes


class TestBorda:
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 0, 4), (5, 20, 2), (4, 30, 200)])
    def test_borda_counts_the_labels_below(self, shape: tuple[int, int, int]) -> None:
        ballot = classification(*shape)
        scores = ballot.scores
        ordered = scores.sort(dim=-1).values
        below = torch.searchsorted(ordered, scores, right=False)
        not_above = torch.searchsorted(ordered, scores, right=True)
        points = (below + not_above - 1).double() / 2
        expected = points.mean(dim=0) / max(scores.shape[-1] - 1, 1)
        assert torch.equal(combine("borda", ballot).scores, expected.float())

    def test_borda_takes_any_memory_layout(self) -> None:
        ballot = classification(3, 4, 5)
        turned = make_ballot(Task.CLASSIFICATION, ballot.scores.mT.contiguous().mT)
        assert torch.equal(combine("borda", turned).scores, combine("borda", ballot).scores)


class TestCountedVotes:
    @without_deadline
    @given(ballot=ballots(label_tasks), data=st.data())
    def test_the_score_is_the_kth_largest(self, ballot: Ballot, data: st.DataObject) -> None:
        members = len(ballot.scores)
        descending = ballot.scores.sort(dim=0, descending=True).values
        k = data.draw(st.integers(1, members))
        for text, rank in (("any", 1), ("all", members), (f"at_least(k={k})", k)):
            assert torch.equal(combine(text, ballot).scores, descending[rank - 1])

    @without_deadline
    @given(ballot=ballots(label_tasks), more=st.integers(0, 4), data=st.data())
    def test_the_bounds_of_some_members(
        self, ballot: Ballot, more: int, data: st.DataObject
    ) -> None:
        run = len(ballot.scores)
        members = run + more
        needed = data.draw(st.sampled_from([1, members, members // 2 + 1]))
        descending = ballot.scores.sort(dim=0, descending=True).values
        lower = descending[min(needed, run) - 1]
        upper = descending[max(run - (members - needed + 1), 0)]
        outcome: Outcome = _outcome_of_counted_votes(ballot, needed, members)
        assert outcome.decisions is not None
        assert torch.equal(outcome.scores, torch.where(outcome.decisions, lower, upper))

    @pytest.mark.parametrize("text", ["any", "all", "at_least(k=1)", "at_least(k=4)"])
    def test_an_extreme_is_found_without_sorting(self, text: str) -> None:
        ballot = classification(4, 3, 5)
        policy = bound(text, ballot)
        with Operations() as operations:
            policy.combine(ballot)
            _outcome_of_counted_votes(ballot, 1, 6)
            _outcome_of_counted_votes(ballot, 6, 6)
            settled(ballot.votes, 0, policy, ballot.task)
        assert not {name for name in operations.largest_bytes if "sort" in name}


class TestFittedModels:
    MEMBERS, LABELS = 4, 60

    def dawid_skene(self, labels: int) -> DawidSkeneModel:
        generator = torch.Generator().manual_seed(2)
        confusions = torch.rand(self.MEMBERS, labels, labels, generator=generator)
        confusions *= torch.rand(confusions.shape, generator=generator) > 0.05
        confusions += torch.eye(labels)
        names = tuple(f"m{index}" for index in range(self.MEMBERS))
        prior = torch.rand(labels, generator=generator)
        return DawidSkeneModel(
            names, confusions / confusions.sum(dim=-1, keepdim=True), prior / prior.sum()
        )

    @pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.PRESENCE])
    @pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1], [2, 0, 1]])
    def test_dawid_skene_is_its_formula(self, task: Task, order: list[int]) -> None:
        labels = 2 if task is Task.PRESENCE else self.LABELS
        model = self.dawid_skene(labels)
        scores = classification(self.MEMBERS, 50, labels).scores
        whole = make_ballot(task, scores[..., :1] if task is Task.PRESENCE else scores)
        policy = bound("dawid_skene", whole, {"raters": model})
        ballot = whole.select(order)
        votes = ballot.votes
        if task is Task.PRESENCE:
            votes = torch.cat([~votes, votes], dim=-1)
        smallest = torch.finfo(torch.float64).tiny
        confusions = model.confusions[order].double().clamp(min=smallest).log()
        evidence = torch.einsum("mjl,mnl->nj", confusions, votes.double())
        prior = model.prior.double().clamp(min=smallest).log()
        expected = (prior + evidence).softmax(dim=-1).float()
        combined = policy.combine(ballot).scores
        if task is Task.PRESENCE:
            expected = expected[:, 1:]
        # The float64 sums are in another order, which changes at most the last bit of a float32.
        torch.testing.assert_close(combined, expected, rtol=2e-7, atol=1e-37)

    @pytest.mark.parametrize("kind", ["dawid_skene", "stacking"])
    def test_parameters_are_converted_once(self, kind: str) -> None:
        ballot = classification(self.MEMBERS, 2, self.LABELS)
        inputs = self.MEMBERS * self.LABELS
        stacking = StackingModel(
            ballot.member_names, torch.rand(self.LABELS, inputs), torch.rand(self.LABELS)
        )
        fitted = {"dawid_skene": self.dawid_skene(self.LABELS), "stacking": stacking}
        policy = bound(kind, ballot, fitted)
        first = policy.combine(ballot)
        with Operations() as operations:
            second = policy.combine(ballot)
        assert torch.equal(first.scores, second.scores)
        for name in ("_to_copy", "clamp", "log"):
            assert operations.largest_bytes.get(name, 0) < 8 * self.LABELS**2, name

    def test_stacking_is_its_formula(self) -> None:
        ballot = classification(self.MEMBERS, 9, self.LABELS)
        generator = torch.Generator().manual_seed(3)
        coefficients = torch.randn(self.LABELS, self.MEMBERS * self.LABELS, generator=generator)
        intercept = torch.randn(self.LABELS, generator=generator)
        model = StackingModel(ballot.member_names, coefficients, intercept)
        features = ballot.scores.double().permute(1, 0, 2).reshape(9, -1)
        expected = (features @ coefficients.double().T + intercept.double()).softmax(dim=-1)
        combined = combine("stacking", ballot, {"meta": model}).scores
        assert torch.equal(combined, expected.float())
