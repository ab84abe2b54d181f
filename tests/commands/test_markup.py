"""Names of models, labels and files are printed as they are: rich sees no markup in them."""

from __future__ import annotations

import pytest

from torchserve_ensemble.commands import predict, printing
from torchserve_ensemble.serving.management import ModelVersion, Worker
from torchserve_ensemble.tuning.metrics import Metrics
from torchserve_ensemble.tuning.printing import print_metrics

NAMES = ("[/b]", "[red]x", "[link=http://a]b[/link]", "\\[a]", "[/]")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.parametrize("name", NAMES)
def test_predictions(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"sample": name, "label": name, "labels": [name], "members": {name: {"label": name}}}
    failed = {"sample": name, "error": {"message": f"bad: {name}"}}
    predict._print_table([answer, failed])
    printed = capsys.readouterr().out
    assert printed.count(name) == 6, printed


@pytest.mark.parametrize("name", NAMES)
def test_versions(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(id=name, status=name, pid=1, gpu=False, memory_bytes=1)
    version = ModelVersion(name, name, name, 1, 1, 1, 1, True, (worker,))
    printing.print_versions([version])
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_metrics(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics({name: Metrics(values={"accuracy": 1.0}, counts={})}, name)
    assert capsys.readouterr().out.count(name) == 2
