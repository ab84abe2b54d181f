"""Tests that members are compared in full float32, and run in what torch chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from member_files import CPU, net, write_code, write_ensemble
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.members.full_float32 import full_float32
from torchserve_ensemble.handlers.members.loading import LoadedMember
from torchserve_ensemble.handlers.spec import load_spec


def test_setting_comes_back_after_an_error() -> None:
    before = torch.backends.cudnn.conv.fp32_precision

    @full_float32()
    def fails() -> None:
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_members_are_checked_in_full_float32_and_run_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = []
    call = LoadedMember.__call__

    def recorded(self: LoadedMember, batch: Tensor) -> Tensor:
        precisions.append(torch.backends.cudnn.conv.fp32_precision)
        return call(self, batch)

    monkeypatch.setattr(LoadedMember, "__call__", recorded)
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    members = [{"name": "a", "architecture": "net.py:Net", "weights": "w.safetensors"}]
    before = torch.backends.cudnn.conv.fp32_precision
    runtime = Runtime.load(load_spec(write_ensemble(tmp_path, members)), tmp_path, CPU)
    assert precisions[:3] == ["ieee"] * 3
    runtime.run(runtime.example_inputs(1))
    assert precisions[-1] == before != "ieee"
