"""Predictions as CSV: the columns depend on what is answered, never on which row comes first."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.cli import main
from torchserve_ensemble.commands.prediction_csv import write_csv
from torchserve_ensemble.handlers.base.errors import ServerError

Row = dict[str, Any]
ERROR: Row = {"sample": "broken.png", "error": {"message": "not an image", "code": 415}}


def answer(sample: str, *members: str, label: str = "cat", **more: Any) -> Row:
    own = {name: {"label": f"{name} says {label}", "score": 0.5} for name in members}
    return {
        "sample": sample,
        "label": label,
        "labels": [label],
        "score": 0.5,
        "members": own,
        **more,
    }


def written(rows: Iterable[Row]) -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    write_csv(iter(rows), file)
    file.seek(0)
    return list(csv.DictReader(file))


def test_an_error_in_the_first_row_leaves_the_members_columns() -> None:
    first, second = written([ERROR, answer("a.png", "cnn", "mlp")])
    assert first == {
        **dict.fromkeys(["sample", "combined", "score", "cnn", "mlp"], ""),
        "sample": "broken.png",
        "error": "not an image",
    }
    assert (second["combined"], second["score"]) == ("cat", "0.5")
    assert (second["cnn"], second["mlp"]) == ("cnn says cat", "mlp says cat")


def test_the_columns_are_those_of_any_order_of_the_rows() -> None:
    rows = [
        ERROR,
        answer("1", "a", "c"),
        answer("2", "b", "c", abstained=True),
        answer("3", "c", "d", top_k=[{"label": "cat", "score": 0.5}]),
    ]
    found = {tuple(written(order)[0]) for order in itertools.permutations(rows)}
    (columns,) = found
    assert columns[:4] == ("sample", "combined", "score", "error")
    assert set(columns[4:]) == {"a", "b", "c", "d", "abstained", "top_k"}
    assert columns.index("a") < columns.index("c") < columns.index("d")


def test_members_stand_in_the_order_of_the_deployment() -> None:
    rows = [answer("1", "z", "b"), answer("2", "z", "m", "b", "a"), answer("3", "a")]
    assert list(written(rows)[0])[4:] == ["z", "m", "b", "a"]


def test_members_that_change_their_places_while_predicting_have_columns_all_the_same() -> None:
    """Another version may become the default one between two requests."""
    assert list(written([answer("1", "b", "a"), answer("2", "a", "b")])[0])[4:] == ["a", "b"]


def test_what_was_asked_for_has_a_column() -> None:
    more = {
        "scores": {"cat": 0.75, "dog, small": 0.25},
        "top_k": [{"label": "cat", "score": 0.75}],
        "uncertainty": {"disagreement": 0.5},
        "failed_members": {"cnn": "NaN"},
    }
    (row,) = written([answer("a", "mlp", **more)])
    assert {name: json.loads(row[name]) for name in more} == more


def test_an_abstention() -> None:
    (row,) = written(
        [{"sample": "a", "label": None, "labels": [], "score": 0.4, "abstained": True}]
    )
    assert (row["combined"], row["score"], row["abstained"]) == ("none", "0.4", "true")


def test_tasks_without_one_label() -> None:
    several, value = written(
        [
            {"sample": "a", "labels": ["cat", "dog"], "scores": {"cat": 0.9, "dog": 0.8}},
            {"sample": "b", "values": {"age": -3.25}, "members": {"m": {"values": {"age": -3.0}}}},
        ]
    )
    assert (several["combined"], several["score"]) == ("cat, dog", "")
    assert json.loads(several["scores"]) == {"cat": 0.9, "dog": 0.8}
    assert (value["combined"], value["m"]) == ("age -3.25", "age -3")


def test_what_was_not_asked_for_is_not_called_none() -> None:
    (row,) = written([{"sample": "a", "score": 0.5}])
    assert (row["combined"], row["score"]) == ("", "0.5")


@pytest.mark.parametrize(
    "name", ["sample", "combined", "score", "error", "scores", "top_k", "abstained"]
)
def test_a_member_with_the_name_of_a_column_has_one_of_its_own(name: str) -> None:
    failed, row = written([ERROR, answer("a", name, "other")])
    assert row[f"member {name}"] == f"{name} says cat"
    assert (row["sample"], row["combined"], row["error"]) == ("a", "cat", "")
    assert failed["error"] == "not an image"


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_foreign_text_is_no_formula(start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    label, error, member = written(
        [
            answer(text, "m", label=text),
            {"sample": text, "error": {"message": text}},
            {"sample": "c", "label": "x", "members": {text: {"label": text}}},
        ]
    )
    kept = f"'{text}"
    assert (label["sample"], label["combined"], error["error"]) == (kept, kept, kept)
    assert member[kept] == kept


def test_numbers_stay_numbers() -> None:
    (row,) = written([answer("a") | {"score": -0.5}])
    assert row["score"] == "-0.5"


def test_quoting() -> None:
    text = 'a "b", c\nd; é 漢'
    (row,) = written([answer(text, label=text)])
    assert (row["sample"], row["combined"]) == (text, text)


def test_a_name_that_is_no_unicode_is_written_all_the_same() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    write_csv(iter([answer("\udcff.png")]), file)


def test_what_was_answered_before_a_failure_is_written() -> None:
    def rows() -> Iterator[Row]:
        yield answer("a", "m")
        raise ServerError("the server is gone")

    file = io.StringIO(newline="")
    with pytest.raises(ServerError):
        write_csv(rows(), file)
    assert file.getvalue().splitlines() == [
        "sample,combined,score,error,m",
        "a,cat,0.5,,m says cat",
    ]


def test_no_rows_no_header() -> None:
    assert written([]) == []


@pytest.mark.parametrize("task", ["classification", "presence", "multilabel", "regression"])
def test_the_command(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes(tmp_path, task=task)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").write_bytes(image(0.9))
    command = ["predict", "--local", str(tmp_path / "ensemble.yaml")]
    command += [str(tmp_path / name) for name in ("1.png", "2.png")]
    assert main([*command, "--format", "csv", "--on-error", "skip"]) == 0
    failed, row = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert failed["error"]
    assert [name for name in row if name in "abc"] == ["a", "b", "c"]
    assert all(row[name] for name in ("combined", "a", "b", "c"))
