"""A build holds one large member at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from member_files import CODE, net, write_code, write_ensemble
from safetensors.torch import save_file

from torchserve_ensemble.archiver import saved_members
from torchserve_ensemble.archiver.saved_members import SavedMembers, service_of
from torchserve_ensemble.handlers.members.loading import load_member
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec

CPU = torch.device("cpu")


@pytest.fixture
def spec(tmp_path: Path) -> EnsembleSpec:
    write_code(tmp_path, CODE)
    names = ("a", "b", "c")
    for name in names:
        save_file(net().state_dict(), tmp_path / f"{name}.safetensors")
    members = [
        {"name": name, "architecture": "net.py:Net", "weights": f"{name}.safetensors"}
        for name in names
    ]
    return load_spec(write_ensemble(tmp_path, members))


def test_the_check_frees_each_member_before_the_next(
    spec: EnsembleSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[Any] = []
    load_saved = saved_members.load_saved

    def observed(*arguments: Any) -> Any:
        assert [module() for module in modules] == [None] * len(modules)
        loaded = load_saved(*arguments)
        modules.append(weakref.ref(loaded.module))
        return loaded

    monkeypatch.setattr(saved_members, "load_saved", observed)
    monkeypatch.setattr(saved_members, "_MAX_KEPT_BYTES", 0)
    service_of(spec, tmp_path)
    assert len(modules) == 3


@pytest.mark.parametrize(("max_files", "num_alive"), [(0, 1), (2, 2), (3, 3)])
def test_members_stay_loaded_up_to_a_size(
    spec: EnsembleSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_files: int,
    num_alive: int,
) -> None:
    size = (tmp_path / "a.safetensors").stat().st_size
    monkeypatch.setattr(saved_members, "_MAX_KEPT_BYTES", max_files * size)
    members = SavedMembers(
        spec, tmp_path, lambda each: load_member(spec, spec.members[each], tmp_path, CPU)
    )
    modules = [weakref.ref(member.module) for member in members]
    assert [module() is not None for module in modules] == [
        position >= 3 - num_alive for position in range(3)
    ]
    # A member that is loaded is the same object each time.
    assert members[2].module is modules[2]()
    assert [member.name for member in members] == ["a", "b", "c"]
