"""Changes of decisions are counted by direction, and judged where labels are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.errors import RequestError, SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.serving.client import Prediction
from torchserve_ensemble.tuning.decision_changes import (
    ABSTAINED,
    Answers,
    McNemar,
    broken,
    corrected,
    decision_changes,
)
from torchserve_ensemble.tuning.endpoint import Served
from torchserve_ensemble.tuning.labelled_data import LabelledData
from torchserve_ensemble.tuning.unlabelled_data import has_labels, unlabelled_images

PRESENCE = Served(Task.PRESENCE, ("absent", "present"))


def answers(
    ensemble: Served, rows: list[dict[str, Any]], targets: list[list[float]] | None = None
) -> Answers:
    data = None
    if targets is not None:
        dtype = torch.float32 if ensemble.task is Task.REGRESSION else torch.bool
        paths = tuple(Path(str(n)) for n in range(len(rows)))
        data = LabelledData("data", paths, torch.tensor(targets, dtype=dtype), "sha256:")
    return Answers(ensemble, [Prediction.from_json(row) for row in rows], data)


def presence(text: str, truth: str | None = None) -> Answers:
    """Make answers of a text with + for present, - for absent, ? for undecided."""
    rows = []
    for sign in text:
        label = {"+": "present", "-": "absent", "?": None}[sign]
        row: dict[str, Any] = {"label": label, "labels": [label] if label else [], "score": 0.5}
        rows.append(row | {"scores": {"present": 0.5}, "abstained": sign == "?"})
    targets = None if truth is None else [[sign == "+"] for sign in truth]
    return answers(PRESENCE, rows, targets)


def changes(before: Answers, after: Answers, **options: Any) -> Any:
    paths = [Path(str(number)) for number in range(len(before.predictions))]
    return decision_changes(before, after, paths, "data", **options)


def test_directions_and_verdicts() -> None:
    truth = "+++---"
    found = changes(presence("+---+?", truth), presence("-++-+-", truth))
    assert {key: len(images) for key, images in found.directions.items()} == {
        ("absent", "present"): 2,
        ("present", "absent"): 1,
        (ABSTAINED, "absent"): 1,
    }
    assert (found.right_before, found.right_after) == (2, 4)
    assert (corrected(found.changes), broken(found.changes)) == (3, 1)
    assert found.test == McNemar.of(1, 3)
    assert [each.truth for each in found.changes] == ["present", "present", "present", "absent"]


def test_without_labels_nothing_is_judged() -> None:
    found = changes(presence("+-"), presence("--"))
    assert len(found.changes) == 1
    assert found.right_before is found.test is corrected(found.changes) is None


def test_several_labels_and_none() -> None:
    ensemble = Served(Task.MULTILABEL, ("red", "round"))
    rows = [{"labels": ["red"]}, {"labels": []}, {"labels": ["red", "round"]}]
    others = [{"labels": ["red", "round"]}, {"labels": []}, {"labels": []}]
    targets = [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    found = changes(answers(ensemble, rows, targets), answers(ensemble, others, targets))
    assert list(found.directions) == [("red", "red, round"), ("red, round", "(none)")]
    assert [each.is_right for each in found.changes] == [True, True]
    assert (found.right_before, found.right_after) == (1, 3)


def test_values_change_by_more_than_the_tolerance() -> None:
    ensemble = Served(Task.REGRESSION, ("size",))
    before = answers(ensemble, [{"values": {"size": v}} for v in (1.0, 2.0)], [[1.0], [1.0]])
    after = answers(ensemble, [{"values": {"size": v}} for v in (1.0005, 4.0)], [[1.0], [1.0]])
    found = changes(before, after, tolerance=0.001)
    assert [(each.before, each.after) for each in found.changes] == [("size 2", "size 4")]
    assert found.root_mean_square_errors == pytest.approx((0.5**0.5, 4.5**0.5), rel=1e-3)
    assert found.test is None
    assert list(found.directions) == [("values", "other values")]
    with pytest.raises(RequestError, match="one archive's task is presence, the other's regress"):
        changes(presence("++"), after)


def test_images_that_one_of_them_cannot_read_are_left_out() -> None:
    unreadable = [{"error": {"message": "no image"}}, {"label": "present", "labels": ["present"]}]
    found = changes(presence("+-", "++"), answers(PRESENCE, unreadable, [[1.0], [1.0]]))
    assert found.errors == {"0": "no image"}
    assert (found.num_images, found.right_before, found.right_after) == (1, 0, 1)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_test(only_before: int, only_after: int) -> None:
    count, fewer = only_before + only_after, min(only_before, only_after)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    assert McNemar.of(only_before, only_after).p_value == pytest.approx(min(1.0, 2 * tail))


def test_the_verdict_in_words() -> None:
    assert "does not show" in str(McNemar.of(5, 9))
    assert "the second is right more often (p = 0.00049" in str(McNemar.of(0, 12))
    assert "the first is right more often" in str(McNemar.of(12, 0))


def test_which_data_are_labelled(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "tree" / "absent").mkdir(parents=True)
    for name in ("flat/b.png", "flat/a.png", "flat/notes.txt", "tree/absent/c.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "plain.csv").write_text("file\nflat/a.png\n")
    (tmp_path / "labelled.csv").write_text("file,label\nflat/a.png,absent\n")
    (tmp_path / "other.csv").write_text("name\nflat/a.png\n")
    expected = {"flat": False, "tree": True, "plain.csv": False, "labelled.csv": True}
    assert {name: has_labels(tmp_path / name, PRESENCE) for name in expected} == expected
    assert [path.name for path in unlabelled_images(tmp_path / "flat")] == ["a.png", "b.png"]
    assert unlabelled_images(tmp_path / "plain.csv") == (tmp_path / "flat/a.png",)
    assert [path.name for path in unlabelled_images(tmp_path / "tree")] == ["c.png"]
    with pytest.raises(SpecError, match="no such folder or file"):
        has_labels(tmp_path / "missing", PRESENCE)
    with pytest.raises(SpecError, match="column 'file' is missing"):
        unlabelled_images(tmp_path / "other.csv")
