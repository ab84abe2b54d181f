"""``ts-ensemble describe`` fits on a screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.commands.describe import print_description


def printed(description: dict[str, object], capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_description(description)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("task", ["classification", "presence", "multilabel", "regression"])
def test_three_members_fit_on_80_by_24(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    service = probes(
        tmp_path,
        task=task,
        description="Tells how bright a picture is.",
        policies={"default": "sharp", "named": {"sharp": "median"}},
    )
    lines = printed(service.describe(), capsys)
    # The prompt takes one line more.
    assert len(lines) <= 23, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in (
        *("probes 1.0", "Tells how bright", f"task {task}", "default policy sharp"),
        *("sharp = median", "probe.py:Probe safetensors 1", "trimmed_mean", "cpu"),
    ):
        assert words in text


def test_keys_without_a_value_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TorchServe leaves them out."""
    description = probes(tmp_path).describe() | {"input_shape": None}
    description["members"] = [each | {"architecture": None} for each in description["members"]]
    with_nulls = printed(description, capsys)
    members = [
        {key: value for key, value in member.items() if value is not None}
        for member in description["members"]
    ]
    present = {key: value for key, value in description.items() if value is not None}
    assert printed(present | {"members": members}, capsys) == with_nulls


def test_a_thousand_labels_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = probes(tmp_path)
    description = service.describe() | {"labels": [f"label {number}" for number in range(1000)]}
    text = " ".join(" ".join(printed(description, capsys)).split())
    assert "labels (1000) label 0, label 1," in text
    assert "... (--json prints all)" in text


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = probes(tmp_path).describe() | {"labels": ["[red]a", "[/b]"]}
    assert "[red]a, [/b]" in "\n".join(printed(description, capsys))
