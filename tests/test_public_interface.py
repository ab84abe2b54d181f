"""Tests what `torchserve_ensemble` exports. A change of the list affects everybody who uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torchserve_ensemble

PUBLIC = [
    "ArchiveError",
    "Ensemble",
    "EnsembleError",
    "EnsembleService",
    "InferenceClient",
    "MemberError",
    "Prediction",
    "RequestError",
    "ServerError",
    "SpecError",
    "build_archive",
    "load_service",
    "load_spec",
]


def test_all_is_the_promised_list() -> None:
    assert torchserve_ensemble.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(torchserve_ensemble))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_exported_and_documented(name: str) -> None:
    exported = getattr(torchserve_ensemble, name)
    assert exported.__name__ == name
    assert exported.__doc__


def test_another_name_is_not_exported() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = torchserve_ensemble.nonsense


def test_neither_the_import_nor_help_waits_for_torch() -> None:
    program = (
        "import sys, torchserve_ensemble, torchserve_ensemble.cli as cli; cli.parser(); "
        "print([name for name in ('torch', 'rich', 'sklearn', 'grpc') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert printed.strip() == "[]"
