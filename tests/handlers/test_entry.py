"""The entry replaces TorchServe's reader of requests, and refuses a TorchServe that differs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ts
from ts.service import Service

from torchserve_ensemble.handlers import entry


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TorchServe's own function, which is restored after the test."""
    function = Service.retrieve_data_for_inference
    monkeypatch.setattr(Service, "retrieve_data_for_inference", staticmethod(function))
    return function


BATCH = [
    {
        "requestId": b"1",
        "headers": [{"name": b"policy", "value": b"any"}],
        "parameters": [
            {"name": "file", "contentType": "image/png", "value": b"first"},
            {"name": "file", "contentType": "image/png", "value": b"second"},
        ],
    }
]


def test_torchserve_itself_loses_parts_of_one_name(original: Any) -> None:
    _, inputs, _ = original(BATCH)
    assert inputs == [{"file": b"second"}]


def test_with_the_entry_every_part_arrives_in_order(original: Any) -> None:
    entry._keep_every_part()
    entry._keep_every_part()
    _, inputs, ids = Service.retrieve_data_for_inference(BATCH)
    assert [part[2] for part in inputs[0]["parts"]] == [b"first", b"second"]
    assert inputs[0]["headers"] == [("policy", "any")]
    assert ids == {0: b"1"} or list(ids.values()) == ["1"]


def test_another_torchserve_is_refused(original: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ts, "__version__", "0.13.0")
    with pytest.raises(
        RuntimeError, match=r"0\.13\.0 is not 0\.12\.x .* install torchserve==0\.12\.0"
    ):
        entry._keep_every_part()


def test_a_function_with_other_parameters_is_refused(
    original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(batch: object, more: object) -> None: ...

    monkeypatch.setattr(Service, "retrieve_data_for_inference", staticmethod(changed))
    with pytest.raises(RuntimeError, match="has changed"):
        entry._keep_every_part()


def test_a_handlers_package_from_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("handlers")
    other.__file__ = "/elsewhere/handlers/__init__.py"
    monkeypatch.setitem(sys.modules, "handlers", other)
    context = SimpleNamespace(
        system_properties={"model_dir": str(tmp_path)}, model_name="x", model_yaml_config={}
    )
    with pytest.raises(RuntimeError, match=r"imported from /elsewhere/.*, not from the archive"):
        entry.EnsembleHandler().initialize(context)
