"""`ts-ensemble check`: an ensemble beside a user's own inference code."""

from __future__ import annotations

from pathlib import Path

import pytest
from probe_ensemble import image, probes

from torchserve_ensemble.cli import main

HEADER = """
import numpy as np
import torch
from PIL import Image


def brightness(path):
    return np.asarray(Image.open(path).convert("RGB")).mean() / 255


def member(path, bound=0.5):
    logit = 10 * (brightness(path) - bound)
    return torch.softmax(torch.tensor([-logit / 2, logit / 2]), 0)


def ensemble(path):
    return sum(member(path, bound) for bound in (0.25, 0.5, 0.75)) / 3


def by_name(path):
    dark, bright = ensemble(path)
    return {"bright": bright, "dark": dark}


def wrong(path):
    return 1 - ensemble(path)


def fails(path):
    raise ValueError("no such luck")


def short(path):
    return [0.5]


def unlabelled(path):
    return {"dark": 0.5}


def text(path):
    return "bright"


not_a_function = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    probes(folder, policies={"default": "mean"})
    (folder / "own.py").write_text(HEADER)
    (folder / "images").mkdir()
    for level in range(1, 10):
        (folder / "images" / f"{level}.png").write_bytes(image(level / 10))
    return folder


def check(folder: Path, function: str, *options: str) -> int:
    reference = f"{folder / 'own.py'}:{function}"
    return main(
        [
            "check",
            str(folder / "ensemble.yaml"),
            "--reference",
            reference,
            "--data",
            str(folder / "images"),
            *options,
        ]
    )


@pytest.mark.parametrize("options", [("ensemble",), ("by_name",), ("member", "--member", "b")])
def test_agreement(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert check(folder, *options) == 0
    assert "9 images: 9 with the same decision" in capsys.readouterr().out


def test_the_images_that_differ_most_come_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert check(folder, "wrong") == 1
    shown = capsys.readouterr().out
    assert "9 images: 0 with the same decision" in shown
    names = [line.split(".png")[0][-1] for line in shown.splitlines() if ".png" in line]
    assert names[0] in "19"
    assert names[-1] == "5"


def test_the_tolerance_decides(folder: Path) -> None:
    assert check(folder, "member") == 1
    assert check(folder, "ensemble", "--tolerance", "0.00001") == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ensembel", "did you mean 'ensemble'"),
        ("not_a_function", "no function 'not_a_function'"),
        ("fails", "own.py, line 30: ValueError: no such luck"),
        ("short", "1 numbers for 2 labels (dark, bright)"),
        ("unlabelled", "no score for label 'bright'"),
        ("text", "it returned str"),
    ],
)
def test_what_is_wrong_with_a_reference_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], function: str, message: str
) -> None:
    assert check(folder, function) == 1
    assert message in capsys.readouterr().err


def test_a_member_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, "member", "--member", "d") == 1
    assert "the members are a, b, c" in capsys.readouterr().err


def test_a_file_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, data = str(folder / "ensemble.yaml"), str(folder / "images")
    assert main(["check", spec, "--reference", "none.py:f", "--data", data]) == 1
    assert "no file none.py" in capsys.readouterr().err
    assert main(["check", spec, "--reference", "none.py", "--data", data]) == 1
    assert "FILE.py:FUNCTION" in capsys.readouterr().err
