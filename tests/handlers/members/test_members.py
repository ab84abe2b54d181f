"""Tests how outputs become scores, and the check that every member must pass before it serves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from member_files import batch, check, load, load_error, member, net, spec_of, write_code
from safetensors.torch import save_file
from torch import Tensor, nn

from torchserve_ensemble.handlers.base.errors import MemberError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.members.loading import LoadedMember, load_member, scores
from torchserve_ensemble.handlers.spec import Output

finite = st.floats(-30, 30, width=32)
temperatures = st.floats(0.1, 10)


def function(forward: Any) -> LoadedMember:
    """Make a loaded member from a function."""
    return LoadedMember("first", forward, None)


def logits(x: Tensor) -> Tensor:
    """Compute three logits of each input from its first numbers."""
    return x.flatten(1)[:, :3] * 4 - 2


class TestScores:
    @given(st.lists(finite, min_size=2, max_size=6), temperatures)
    def test_classification_is_the_softmax(self, row: list[float], temperature: float) -> None:
        raw = torch.tensor([row])
        result, scaled = scores(raw, Task.CLASSIFICATION, Output.LOGITS, temperature)
        expected = torch.softmax(raw.double() / temperature, dim=1)
        assert torch.allclose(result.double(), expected, atol=1e-5)
        assert scaled is not None
        assert torch.allclose(scaled.softmax(dim=1), result)

    @given(st.lists(finite, min_size=1, max_size=6), temperatures)
    def test_multilabel_is_the_sigmoid(self, row: list[float], temperature: float) -> None:
        raw = torch.tensor([row])
        result, scaled = scores(raw, Task.MULTILABEL, Output.LOGITS, temperature)
        assert torch.allclose(result, torch.sigmoid(raw / temperature))
        assert scaled is not None
        assert torch.equal(scaled.sigmoid(), result)

    @given(finite, finite, temperatures)
    def test_presence_with_two_outputs(
        self, absent: float, present: float, temperature: float
    ) -> None:
        raw = torch.tensor([[absent, present]])
        result, scaled = scores(raw, Task.PRESENCE, Output.LOGITS, temperature)
        expected = torch.softmax(raw.double() / temperature, dim=1)[:, 1:]
        assert torch.allclose(result.double(), expected, atol=1e-5)
        assert scaled is not None
        assert torch.allclose(scaled, torch.tensor([[(present - absent) / temperature]]))

    def test_presence_with_one_output(self) -> None:
        result, _ = scores(torch.tensor([[0.0], [2.0]]), Task.PRESENCE, Output.LOGITS, 2.0)
        assert torch.allclose(result, torch.tensor([[0.5], [0.7310586]]))

    @pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL, Task.PRESENCE])
    def test_probabilities_stay(self, task: Task) -> None:
        raw = torch.tensor([[0.2, 0.8]])
        result, scaled = scores(raw, task, Output.PROBABILITIES, 1.0)
        assert torch.equal(result, raw[:, 1:] if task is Task.PRESENCE else raw)
        assert scaled is None

    def test_values_stay(self) -> None:
        raw = torch.tensor([[-3.0, 40.0]])
        result, scaled = scores(raw, Task.REGRESSION, Output.VALUES, 1.0)
        assert torch.equal(result, raw)
        assert scaled is None

    def test_no_samples(self) -> None:
        for task in (Task.CLASSIFICATION, Task.PRESENCE):
            result, _ = scores(torch.zeros((0, 2)), task, Output.LOGITS, 1.0)
            assert result.shape == (0, 1 if task is Task.PRESENCE else 2)


class TestLoadedMember:
    def test_one_number_for_each_sample_becomes_a_column(self) -> None:
        loaded = function(lambda x: x.flatten(1).sum(dim=1))
        assert loaded(batch()).shape == (3, 1)

    def test_outputs_become_float32(self) -> None:
        assert function(lambda x: logits(x).bfloat16())(batch()).dtype == torch.float32

    @pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"logits": y}])
    def test_several_outputs_are_refused(self, wrap: Any) -> None:
        with pytest.raises(MemberError, match=r"member 'first': forward gave (tuple|dict)"):
            function(lambda x: wrap(logits(x)))(batch())


class TestFile:
    def test_missing(self, tmp_path: Path) -> None:
        assert "none.safetensors cannot be read (No such file" in load_error(
            tmp_path, "none.safetensors"
        )

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "w.safetensors").touch()
        assert "w.safetensors is empty" in load_error(tmp_path, "w.safetensors")

    def test_git_lfs_pointer(self, tmp_path: Path) -> None:
        (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
        assert "run git lfs pull" in load_error(tmp_path, "w.pt")


def test_a_loaded_member_is_ready_to_run(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    module = load(tmp_path, "w.safetensors").module
    assert module is not None
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_device_without_room_passes_through(tmp_path: Path) -> None:
    code = """
        import torch
        def build():
            raise torch.OutOfMemoryError("full")
    """
    write_code(tmp_path, code)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    one = member("w.safetensors", architecture="net.py:build")
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        load_member(spec_of(one), one, tmp_path, torch.device("cpu"))


class TestCheck:
    def test_good_members_pass(self) -> None:
        check(function(net()))
        check(function(logits))
        check(function(lambda x: logits(x)[:, :1]), task=Task.PRESENCE, labels=2)
        check(function(lambda x: logits(x)[:, :2]), task=Task.PRESENCE, labels=2)
        check(function(lambda x: logits(x).sigmoid()), task=Task.MULTILABEL, output="probabilities")
        check(function(lambda x: logits(x)[:, 0]), task=Task.REGRESSION, labels=1)

    @pytest.mark.parametrize(
        ("task", "labels", "outputs", "message"),
        [
            (Task.CLASSIFICATION, 2, 3, r"gives \(3, 3\) for 3 samples.*ask for \(3, 2\):"),
            (Task.PRESENCE, 2, 3, r"ask for \(3, 1\) or \(3, 2\)"),
            (Task.REGRESSION, 3, 2, r"ask for \(3, 3\)"),
        ],
    )
    def test_number_of_outputs(self, task: Task, labels: int, outputs: int, message: str) -> None:
        loaded = function(lambda x: logits(x)[:, :outputs])
        with pytest.raises(MemberError, match=message) as caught:
            check(loaded, task=task, labels=labels)
        assert "ensemble 'trees', member 'first' (w.pt)" in str(caught.value)

    def test_rows_must_be_samples(self) -> None:
        with pytest.raises(MemberError, match=r"gives \(1, 3\) for 3 samples"):
            check(function(lambda x: logits(x).mean(dim=0, keepdim=True)))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float) -> None:
        with pytest.raises(MemberError, match="not finite"):
            check(function(lambda x: logits(x) * value))

    def test_logits_declared_as_probabilities(self) -> None:
        with pytest.raises(MemberError, match="outside 0 to 1.*set output: logits"):
            check(function(logits), output="probabilities")

    def test_probabilities_declared_as_logits(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            check(function(logits))
            assert not caplog.records
            check(function(lambda x: logits(x).softmax(dim=1)))
        assert "set output: probabilities" in caplog.text

    def test_batch_normalisation_in_training_mode(self) -> None:
        with pytest.raises(MemberError, match="training mode"):
            check(function(net().train()))

    def test_batch_normalisation_that_refuses_one_sample(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 3)).train()
        with pytest.raises(MemberError, match=r"fails on a batch of \(1, .*training mode"):
            check(function(model))

    def test_dropout_in_training_mode(self) -> None:
        torch.manual_seed(0)
        with pytest.raises(MemberError, match="alone and among others"):
            check(function(nn.Sequential(net(), nn.Dropout(0.9)).train()))

    @pytest.mark.parametrize("row", [0, 1, 2])
    def test_every_row_is_compared(self, row: int) -> None:
        def forward(x: Tensor) -> Tensor:
            mixed = logits(x)
            if len(x) == 3:
                mixed[row] += 1
            return mixed

        with pytest.raises(MemberError, match="mixes the samples"):
            check(function(forward))

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_fixed_batch_dimension(self, size: int) -> None:
        with pytest.raises(MemberError, match="batch dimension is fixed.*Dim"):
            check(function(lambda x: logits(x.view(size, 3, 4, 4))))

    def test_other_image_size(self) -> None:
        with pytest.raises(MemberError, match=r"fails on a batch of \(3, 3, 4, 4\).*preprocessing"):
            check(function(nn.Sequential(nn.Flatten(), nn.Linear(7, 3))))

    def test_several_outputs(self) -> None:
        with pytest.raises(MemberError, match=r"trees.*forward gave tuple"):
            check(function(lambda x: (logits(x), x)))

    def test_a_device_without_room_passes_through(self) -> None:
        def forward(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("full")

        with pytest.raises(torch.OutOfMemoryError):
            check(function(forward))
