"""Decisions are compared sample by sample, and counted in a bounded matrix."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from probe_ensemble import form, image, probes

from torchserve_ensemble.handlers.observability.catalogue import MAX_CONFUSED_LABELS
from torchserve_ensemble.handlers.observability.timeline import BatchTimeline
from torchserve_ensemble.handlers.rollout.comparison import Decision, compare, decisions_of
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.stages import Answered

LABELS = [f"label{number}" for number in range(100)]
DECISIONS = st.dictionaries(
    st.integers(0, 20),
    st.lists(st.sampled_from(LABELS), max_size=3, unique=True).map(tuple),
)


@given(DECISIONS, DECISIONS)
def test_every_sample_is_counted_once(
    current: dict[int, Decision], candidate: dict[int, Decision]
) -> None:
    comparison = compare(current, candidate, LABELS)
    both = current.keys() & candidate.keys()
    assert comparison.num_agreeing + comparison.num_disagreeing == len(both)
    assert comparison.num_failed == len(current.keys() - candidate.keys())
    assert sum(comparison.confusion.values()) == len(both)
    assert comparison.num_agreeing == sum(current[index] == candidate[index] for index in both)


@given(DECISIONS)
def test_equal_decisions_agree_and_lie_on_the_diagonal(decisions: dict[int, Decision]) -> None:
    comparison = compare(decisions, decisions, LABELS)
    assert comparison.num_disagreeing == comparison.num_failed == 0
    assert all(row == column for row, column in comparison.confusion)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS))))
def test_the_matrix_is_bounded(pairs: list[tuple[str, str]]) -> None:
    current = {index: (pair[0],) for index, pair in enumerate(pairs)}
    candidate = {index: (pair[1],) for index, pair in enumerate(pairs)}
    names = {name for pair in compare(current, candidate, LABELS).confusion for name in pair}
    assert names <= {*LABELS[:MAX_CONFUSED_LABELS], "(other)"}


def decisions(service: EnsembleService, *levels: float, **options: str) -> list[Decision]:
    """Return what a service decides about images of these brightnesses."""
    end = float("inf")
    accepted = service._accept_all([form(*map(image, levels), **options)])
    decoded = service._decode_all(accepted, end)
    (state,) = service._run_and_combine_all(decoded, BatchTimeline(0.0), end)
    assert isinstance(state, Answered)
    found = decisions_of(state.result)
    return [found[index] for index in range(len(levels))]


def test_a_decision_is_the_set_of_chosen_labels(tmp_path: Path) -> None:
    (tmp_path / "presence").mkdir()
    (tmp_path / "multilabel").mkdir()
    presence = probes(tmp_path / "presence", task="presence")
    assert decisions(presence, 0.1, 0.9) == [("dark",), ("bright",)]
    abstaining = {"policy": "mean(min_confidence=0.99)"}
    assert decisions(presence, 0.52, 0.9, **abstaining)[0] == ()
    multilabel = probes(tmp_path / "multilabel", task="multilabel", policies={"default": "any"})
    assert decisions(multilabel, 0.1, 0.4) == [("dark",), ("bright", "dark")]
