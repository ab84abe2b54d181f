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

from torchserve_ensemble import Ensemble
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
    write_csv(rows, file)
    file.seek(0)
    return list(csv.DictReader(file))


def test_an_error_in_the_first_row_leaves_the_columns_of_the_members() -> None:
    first, second = written([ERROR, answer("a.png", "cnn", "mlp")])
    assert list(first) == [
        *("sample", "label", "score", "error.message", "error.code"),
        *("members.cnn.label", "members.cnn.score", "members.mlp.label", "members.mlp.score"),
    ]
    filled = {name: value for name, value in first.items() if value}
    assert filled == {"sample": "broken.png", "error.message": "not an image", "error.code": "415"}
    assert (second["label"], second["score"]) == ("cat", "0.5")
    assert (second["members.cnn.label"], second["members.mlp.score"]) == ("cnn says cat", "0.5")


def test_the_words_are_those_of_the_json_answer(tmp_path: Path) -> None:
    """Column for column what pandas.json_normalize makes of the answers, in its dotted names."""
    for task in ("classification", "presence", "multilabel", "regression"):
        (tmp_path / task).mkdir()
        service = probes(tmp_path / task, task=task)
        ensemble = Ensemble(service)
        asked = {} if task == "regression" else {"include": "scores,uncertainty"}
        rows = ensemble.answer([("a.png", image(0.9)), ("b.png", image(0.1))], **asked)
        (row, _) = written(rows["predictions"])
        for column in row:
            value = rows["predictions"][0]
            for key in column.split(".") if column != "error.message" else ():
                value = value[key]
            if isinstance(value, float):
                assert float(row[column]) == value


def test_the_columns_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = [
        ERROR,
        answer("1", "a", "c"),
        answer("2", "b", "c", abstained=True),
        answer("3", "c", "d", top_k=[{"label": "cat", "score": 0.5}]),
    ]
    headers = {tuple(written(order)[0]) for order in itertools.permutations(rows)}
    (columns,) = headers
    assert columns[:5] == ("sample", "label", "score", "error.message", "error.code")
    assert columns[-2:] == ("abstained", "top_k")
    labels = [column for column in columns if column.endswith(".label")]
    assert sorted(labels) == [f"members.{name}.label" for name in "abcd"]
    assert labels.index("members.a.label") < labels.index("members.c.label")
    assert labels.index("members.c.label") < labels.index("members.d.label")


def test_members_stand_in_the_order_of_the_ensemble() -> None:
    rows = [answer("1", "z", "b"), answer("2", "z", "m", "b", "a"), answer("3", "a")]
    labels = [column for column in written(rows)[0] if column.endswith(".label")]
    assert labels == [f"members.{name}.label" for name in "zmba"]


def test_members_that_change_their_order_while_predicting_have_columns_all_the_same() -> None:
    """Another version may become the default one between two requests."""
    columns = list(written([answer("1", "b", "a"), answer("2", "a", "b")])[0])
    assert columns.index("members.a.label") < columns.index("members.b.label")


def test_every_value_of_the_answer_has_a_column() -> None:
    top_k = [{"label": "cat", "score": 0.75}]
    (row,) = written(
        [
            answer(
                "a",
                "mlp",
                scores={"cat": 0.75, "dog, small": 0.25},
                top_k=top_k,
                uncertainty={"disagreement": 0.5},
                failed_members={"cnn": "NaN"},
                a_later_field={"of": {"the": "server"}},
            )
        ]
    )
    assert (row["scores.cat"], row["scores.dog, small"]) == ("0.75", "0.25")
    assert json.loads(row["top_k"]) == top_k
    assert row["uncertainty.disagreement"] == "0.5"
    assert row["failed_members.cnn"] == "NaN"
    assert row["a_later_field.of.the"] == "server"


def test_an_abstention() -> None:
    (row,) = written(
        [{"sample": "a", "label": None, "labels": [], "score": 0.4, "abstained": True}]
    )
    assert (row["label"], row["score"], row["abstained"]) == ("", "0.4", "true")


def test_tasks_without_one_label() -> None:
    several, value = written(
        [
            {"sample": "a", "labels": ["cat", "dog"], "scores": {"cat": 0.9, "dog": 0.8}},
            {"sample": "b", "values": {"age": -3.25}, "members": {"m": {"values": {"age": -3.0}}}},
        ]
    )
    assert json.loads(several["labels"]) == ["cat", "dog"]
    assert (several["scores.cat"], several["scores.dog"]) == ("0.9", "0.8")
    assert (value["values.age"], value["members.m.values.age"]) == ("-3.25", "-3.0")


@pytest.mark.parametrize("name", ["sample", "label", "error", "scores", "members"])
def test_a_member_with_the_name_of_a_column_has_one_of_its_own(name: str) -> None:
    failed, row = written([ERROR, answer("a", name, "other")])
    assert row[f"members.{name}.label"] == f"{name} says cat"
    assert (row["sample"], row["label"], row["error.message"]) == ("a", "cat", "")
    assert failed["error.message"] == "not an image"


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_foreign_text_is_no_formula(start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    label, error = written(
        [answer(text, "m", label=text), {"sample": text, "error": {"message": text}}]
    )
    quoted = f"'{text}"
    assert (label["sample"], label["label"], error["error.message"]) == (quoted, quoted, quoted)


def test_a_column_is_no_formula_either() -> None:
    (row,) = written([{"sample": "a", "=x": {"y": 1}}])
    assert row["'=x.y"] == "1"


def test_numbers_stay_numbers() -> None:
    (row,) = written([answer("a") | {"score": -0.5}])
    assert row["score"] == "-0.5"


def test_quoting() -> None:
    text = 'a "b", c\nd; é 漢'
    (row,) = written([answer(text, label=text)])
    assert (row["sample"], row["label"]) == (text, text)


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
        "sample,label,score,error.message,members.m.label,members.m.score",
        "a,cat,0.5,,m says cat,0.5",
    ]


def test_no_rows_no_header() -> None:
    assert written([]) == []


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("classification", "label"),
        ("presence", "label"),
        ("multilabel", "labels"),
        ("regression", "values.brightness"),
    ],
)
def test_the_command(
    task: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task=task)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").write_bytes(image(0.9))
    paths = [str(tmp_path / name) for name in ("1.png", "2.png")]
    command = ["predict", "--local", str(tmp_path / "ensemble.yaml"), *paths]
    assert main([*command, "--format", "csv", "--on-error", "skip"]) == 0
    failed, row = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert [failed["sample"], row["sample"]] == paths
    assert failed["error.message"]
    assert all(row[name] for name in (key, *(f"members.{name}.{key}" for name in "abc")))
