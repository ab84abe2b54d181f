"""Members of one architecture give the same answers as one and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from member_files import CODE, Net, write_code, write_ensemble
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.handlers.engine import runtime as runtime_module
from torchserve_ensemble.handlers.engine.runtime import MemberScores, Runtime, State
from torchserve_ensemble.handlers.inputs.example_inputs import trial_images
from torchserve_ensemble.handlers.members import fused as stacking
from torchserve_ensemble.handlers.members.fused import Stack
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")
BRANCHES = """
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) * (1 if self.head.bias.sum() > 0 else 2)
"""


def load(folder: Path, architectures: Sequence[str], temperatures: Sequence[float] = ()) -> Runtime:
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


def both(runtime: Runtime, asked: Tensor | None = None) -> tuple[MemberScores, MemberScores]:
    """As one, and one by one."""
    images = trial_images(6)
    together = runtime.run(images, asked=asked)
    runtime._stacks = []
    return together, runtime.run(images, asked=asked)


def sizes(runtime: Runtime) -> list[int]:
    return [len(stack.members) for stack in runtime._stacks]


def test_answers_are_those_of_the_members_alone(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 5, temperatures=[1.0, 2.0, 0.5, 1.0, 3.0])
    assert sizes(runtime) == [5]
    together, alone = both(runtime)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.logits, alone.logits, rtol=1e-5, atol=1e-5)
    assert together.scores.std(dim=0).min() > 1e-4, "each member has its own weights"


def test_the_weights_are_there_once(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 3)
    (stack,) = runtime._stacks
    for row, loaded in enumerate(runtime._members):
        assert loaded.module is not None
        for name, value in loaded.module.state_dict().items():
            assert value.data_ptr() == stack.state[name][row].data_ptr()


def test_samples_that_not_all_members_see(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net"] * 3)
    asked = torch.ones((3, 6), dtype=torch.bool)
    asked[1, 2:4] = False
    together, alone = both(runtime, asked)
    assert torch.equal(together.states, alone.states)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_other_architectures_stay_apart(tmp_path: Path) -> None:
    runtime = load(tmp_path, ["Net", "Branching", "Net", "Branching", "Net"])
    assert [stack.members for stack in runtime._stacks] == [(0, 2, 4)], (
        "a branch on a weight cannot be stacked"
    )
    together, alone = both(runtime)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)


def test_large_batches_and_large_members_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, ["Net"] * 2)
    (stack,) = runtime._stacks
    assert stack.suits(32, CPU)
    assert not stack.suits(33, CPU)
    assert stack.suits(1000, torch.device("cuda"))
    monkeypatch.setattr(stacking, "_SMALL", 10)
    assert sizes(load(tmp_path, ["Net"] * 2)) == []


def test_a_stack_that_fails_leaves_the_members_their_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, ["Net"] * 3)

    def broken(self: Stack, batch: Tensor) -> Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(runtime_module.Stack, "__call__", broken)
    result = runtime.run(trial_images(4))
    assert bool((result.states == State.ANSWERED).all())
