"""Tests that fused members give the answers that each of them gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from member_files import CODE, Net, write_code, write_ensemble
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.handlers.engine.member_scores import MemberScores, State
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.members import fused
from torchserve_ensemble.handlers.members.executable import SingleMember
from torchserve_ensemble.handlers.members.executables import Executables
from torchserve_ensemble.handlers.members.fused import FusedMembers
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")
BRANCHES = """
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) * (1 if self.head.bias.sum() > 0 else 2)
"""


def load(folder: Path, architectures: Sequence[str], temperatures: Sequence[float] = ()) -> Runtime:
    """Load an ensemble with a member of each architecture, all with different weights."""
    write_code(folder, CODE + BRANCHES)
    members = []
    for seed, architecture in enumerate(architectures):
        torch.manual_seed(seed)
        save_file(Net().state_dict(), folder / f"{seed}.safetensors")
        members.append(
            {
                "name": f"m{seed}",
                "architecture": f"net.py:{architecture}",
                "weights": f"{seed}.safetensors",
                "temperature": temperatures[seed] if temperatures else 1.0,
            }
        )
    path = write_ensemble(folder, members)
    return Runtime.load(load_spec(path), folder, CPU)


def both(runtime: Runtime, selected: Tensor | None = None) -> tuple[MemberScores, MemberScores]:
    """Compute the scores of the fused members, and then of each member alone."""
    images = example_images(6)
    together = runtime.run(images, selected=selected)
    runtime._executables = Executables(runtime._executables.single)
    return together, runtime.run(images, selected=selected)


def fused_of(runtime: Runtime) -> FusedMembers:
    """Return the only fused members of a runtime."""
    (joint,) = runtime._executables.joint
    assert isinstance(joint, FusedMembers)
    return joint


def sizes(runtime: Runtime) -> list[int]:
    """Number of members in each joint executable."""
    return [len(joint.members) for joint in runtime._executables.joint]


def test_answers_are_those_of_the_members_alone(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 5, temperatures=[1.0, 2.0, 0.5, 1.0, 3.0])
    assert sizes(runtime) == [5]
    together, alone = both(runtime)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.logits, alone.logits, rtol=1e-5, atol=1e-5)
    assert together.scores.std(dim=0).min() > 1e-4, "each member has its own weights"


def test_the_weights_are_in_memory_once(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 3)
    joint = fused_of(runtime)
    for row, single in enumerate(runtime._executables.single):
        assert isinstance(single, SingleMember)
        assert single.loaded.module is not None
        for name, value in single.loaded.module.state_dict().items():
            assert value.data_ptr() == joint.state[name][row].data_ptr()


def test_samples_that_only_some_members_compute(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 3)
    selected = torch.ones((3, 6), dtype=torch.bool)
    selected[1, 2:4] = False
    together, alone = both(runtime, selected)
    assert torch.equal(together.states, alone.states)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_members_of_other_architectures_are_not_fused(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net", "Branching", "Net", "Branching", "Net"])
    assert fused_of(runtime).members == (0, 2, 4), "a branch on a weight cannot be fused"
    together, alone = both(runtime)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)


def test_large_batches_and_large_members_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, ["Net"] * 2)
    joint = fused_of(runtime)
    assert joint.pays_for(32)
    assert not joint.pays_for(33)
    state = {name: value.to("meta") for name, value in joint.state.items()}
    assert FusedMembers(joint.members, joint.module, state).pays_for(1000), "pays off a CPU"
    monkeypatch.setattr(fused, "_MAX_PARAMETERS_TO_FUSE", 10)
    assert sizes(load(tmp_path, ["Net"] * 2)) == []


def test_each_member_runs_alone_if_the_fused_members_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, ["Net"] * 3)

    def broken(self: FusedMembers, batch: Tensor) -> Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(FusedMembers, "__call__", broken)
    result = runtime.run(example_images(4))
    assert bool((result.states == State.ANSWERED).all())
