"""Tests that members give the same answers in whatever layout and precision they run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from member_files import member, spec_of
from torch import Tensor, nn

from torchserve_ensemble.handlers.base.errors import MemberError
from torchserve_ensemble.handlers.members import eager_optimisations
from torchserve_ensemble.handlers.members.eager_optimisations import accelerate
from torchserve_ensemble.handlers.members.loading import LoadedMember
from torchserve_ensemble.handlers.spec import EnsembleSpec, Precision, Runtime


class Wide(nn.Module):
    """A network with enough convolution weights to run with channels last.

    Attributes:
        layouts: for each call whether the input was in the layout channels last.
        types: for each call the data type of the activations.
    """

    def __init__(self, *, views: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 96, 3), nn.Conv2d(96, 256, 3)
        self.head = nn.Linear(256 * 4 * 4, 3)
        self.views = views
        self.layouts: list[bool] = []
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        x = self.second(self.first(x).relu()).relu()
        self.types.append(x.dtype)
        flat = x.view(len(x), -1) if self.views else x.flatten(1)
        result: Tensor = self.head(flat)
        return result


def loaded(module: nn.Module) -> LoadedMember:
    """Make a loaded member from a module."""
    return LoadedMember("first", module.eval(), module)


def spec(precision: Precision = Precision.FLOAT32, **settings: Any) -> EnsembleSpec:
    runtime = Runtime(precision=precision, **settings)
    return replace(spec_of(member("w.safetensors")), runtime=runtime)


def batch() -> Tensor:
    return torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def run(
    module: nn.Module, precision: Precision = Precision.FLOAT32, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of a module as it is, and after its optimisation."""
    plain = loaded(module)(batch())
    ensemble = spec(precision, **settings)
    optimised = accelerate(loaded(module), ensemble, ensemble.members[0], batch())
    return plain, optimised(batch())


def test_convolutional_members_run_with_channels_last() -> None:
    module = Wide()
    plain, optimised = run(module)
    assert module.layouts[-1]
    torch.testing.assert_close(optimised, plain, rtol=1e-5, atol=1e-5)


def test_a_module_that_needs_its_layout_keeps_it() -> None:
    module = Wide(views=True)
    plain, optimised = run(module)
    assert not module.layouts[-1]
    assert torch.equal(optimised, plain)
    assert module.second.weight.is_contiguous()


def test_small_members_are_not_changed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    plain, optimised = run(module)
    assert torch.equal(optimised, plain)


def test_bfloat16_stays_within_parity() -> None:
    module = Wide()
    plain, optimised = run(module, Precision.BFLOAT16)
    assert module.types[-1] is torch.bfloat16
    assert optimised.dtype is torch.float32
    difference = (plain.softmax(dim=1) - optimised.softmax(dim=1)).abs().max()
    assert 0 < difference < 1e-2


def test_bfloat16_that_changes_answers_is_refused_or_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager_optimisations, "is_bfloat16_fast", lambda device: True)
    with pytest.raises(MemberError, match="more than 1e-09; set runtime.precision to float32"):
        run(Wide(), Precision.BFLOAT16, tolerance=1e-9)
    plain, optimised = run(Wide(), Precision.AUTO, tolerance=1e-9)
    torch.testing.assert_close(optimised, plain, rtol=1e-5, atol=1e-5)


def test_auto_is_float32_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_optimisations, "is_bfloat16_fast", lambda device: False)
    module = Wide()
    run(module, Precision.AUTO)
    assert module.types[-1] is torch.float32
