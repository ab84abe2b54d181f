"""Weights are loaded into architectures from each format; weights that do not fit are refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from member_files import CPU, Net, Planted, batch, load, load_error, member, net, write_code
from safetensors.torch import save_file
from torch import Tensor, nn

from torchserve_ensemble.handlers.members.state_dict import load_weights

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _code(tmp_path: Path) -> None:
    write_code(tmp_path)


def save(folder: Path, content: Any) -> None:
    torch.save(content, folder / "w.pth")


def same_outputs(folder: Path, weights: str) -> bool:
    """Whether a member with a weights file gives the outputs of the saved network."""
    return torch.equal(load(folder, weights)(batch()), net()(batch()))


def test_safetensors(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    assert same_outputs(tmp_path, "w.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": dict(state), "loss": 0.5},
    ],
)
def test_state_dict(tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    save(tmp_path, wrap(net().state_dict()))
    assert same_outputs(tmp_path, "w.pth")


def test_state_dict_of_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    assert same_outputs(tmp_path, "w.pth")


def test_half_precision_weights_run_in_the_architectures_precision(tmp_path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in net().state_dict().items()},
              tmp_path / "w.safetensors")  # fmt: skip
    loaded = load(tmp_path, "w.safetensors")
    assert loaded.module is not None
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert torch.allclose(loaded(batch()), net()(batch()), atol=1e-2)


@pytest.mark.parametrize("weights", ["w.safetensors", "w.pth"])
def test_weights_without_batch_counters(tmp_path: Path, weights: str) -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    save(tmp_path, state)
    assert same_outputs(tmp_path, weights)


class TestTorchvision:
    """torchvision's architectures are built without data, so loading must bring every tensor."""

    @pytest.mark.parametrize("weights", ["w.safetensors", "w.pth"])
    @pytest.mark.parametrize(
        "name",
        # MNASNet refuses weights without versions; RegNet needs real tensors.
        ["squeezenet1_1", "mnasnet0_5", "regnet_y_400mf"],
    )
    def test_exact(self, tmp_path: Path, name: str, weights: str) -> None:
        torch.manual_seed(0)
        expected = torchvision.models.get_model(name, weights=None, num_classes=3).eval()
        save_file(expected.state_dict(), tmp_path / "w.safetensors")
        save(tmp_path, expected.state_dict())
        loaded = load(
            tmp_path,
            weights,
            architecture=f"torchvision.models.{name}",
            arguments={"num_classes": 3},
        )
        images = torch.rand((1, 3, 96, 96), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(loaded(images), expected(images))

    def test_half_precision_and_missing_counters(self, tmp_path: Path) -> None:
        expected = torchvision.models.resnet18(num_classes=3).half().float().eval()
        state = {
            key: value.half()
            for key, value in expected.state_dict().items()
            if not key.endswith("batches_tracked")
        }
        save_file(state, tmp_path / "w.safetensors")
        loaded = load(
            tmp_path,
            "w.safetensors",
            architecture="torchvision.models.resnet18",
            arguments={"num_classes": 3},
        )
        with torch.inference_mode():
            assert torch.equal(loaded(torch.ones(1, 3, 64, 64)), expected(torch.ones(1, 3, 64, 64)))

    def test_the_file_may_change_afterwards(self, tmp_path: Path) -> None:
        """The weights are copied. A tensor mapped from the file would change with it, or crash."""
        one = member("w.pth", architecture="torchvision.models.squeezenet1_1")
        expected = torchvision.models.squeezenet1_1()
        save(tmp_path, expected.state_dict())
        model = load_weights(one, tmp_path / "w.pth", tmp_path, CPU)
        size = (tmp_path / "w.pth").stat().st_size
        with (tmp_path / "w.pth").open("r+b") as file:
            file.write(bytes(size))
        for key, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[key])


class TestMisfit:
    def test_missing_and_unexpected_keys(self, tmp_path: Path) -> None:
        state = net().state_dict()
        state["extra"] = torch.zeros(1)
        del state["head.bias"]
        save(tmp_path, state)
        message = load_error(tmp_path, "w.pth")
        assert "w.pth does not fit the architecture" in message
        assert "missing keys: head.bias; unexpected keys: extra" in message

    def test_other_shapes(self, tmp_path: Path) -> None:
        save(tmp_path, net(5).state_dict())
        message = load_error(tmp_path, "w.pth")
        assert "head.weight is (5, 16), not (3, 16), head.bias is (5,), not (3,)" in message
        assert "check the architecture and its arguments" in message

    def test_other_types(self, tmp_path: Path) -> None:
        state = net().state_dict()
        state["head.bias"] = torch.zeros(3, dtype=torch.int8)
        save(tmp_path, state)
        assert "head.bias is torch.int8, not torch.float32" in load_error(tmp_path, "w.pth")

    def test_only_the_first_keys_are_shown(self, tmp_path: Path) -> None:
        save(tmp_path, {f"other{index}": torch.zeros(1) for index in range(9)})
        assert "other3, other4 and 4 more" in load_error(tmp_path, "w.pth")

    @pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
    def test_prefix_of_a_wrapper(self, tmp_path: Path, prefix: str) -> None:
        save(tmp_path, {prefix + key: value for key, value in net().state_dict().items()})
        assert f"the file's keys begin with '{prefix}'" in load_error(tmp_path, "w.pth")

    def test_architecture_that_wraps(self, tmp_path: Path) -> None:
        write_code(
            tmp_path,
            "from torch import nn\nclass Wrapper(nn.Module):\n    def __init__(self):\n"
            "        super().__init__()\n        self.model = nn.Linear(2, 3)\n",
            "wrap.py",
        )
        save(tmp_path, nn.Linear(2, 3).state_dict())
        message = load_error(tmp_path, "w.pth", architecture="wrap.py:Wrapper")
        assert "the architecture's keys begin with 'model.'" in message


class TestNothingButTensorsIsUnpickled:
    def test_whole_module(self, tmp_path: Path) -> None:
        save(tmp_path, Net())
        message = load_error(tmp_path, "w.pth")
        assert "member_files.Net" in message
        assert "unpickling runs whatever code" in message
        assert "save_file" in message

    @pytest.mark.parametrize("new_format", [True, False])
    def test_planted_code(self, tmp_path: Path, new_format: bool) -> None:
        trace = tmp_path / "trace"
        content = {"state_dict": net().state_dict(), "callbacks": Planted(trace)}
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new_format)
        assert "it is refused" in load_error(tmp_path, "w.pth")
        assert not trace.exists()

    def test_planted_code_does_run_where_nothing_prevents_it(self, tmp_path: Path) -> None:
        """This shows that the tests above can fail."""
        save(tmp_path, Planted(tmp_path / "trace"))
        torch.load(tmp_path / "w.pth", weights_only=False)
        assert (tmp_path / "trace").exists()


class TestContents:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ([torch.zeros(1)], "holds list, not a state dict"),
            (torch.zeros(1), "holds Tensor, not a state dict"),
            ({"epoch": 3}, "'epoch' holds int, not a tensor"),
            (OrderedDict(a="text"), "'a' holds str, not a tensor"),
        ],
    )
    def test_not_a_state_dict(self, tmp_path: Path, content: Any, expected: str) -> None:
        save(tmp_path, content)
        message = load_error(tmp_path, "w.pth")
        assert expected in message
        assert "save the weights alone" in message

    @pytest.mark.parametrize("weights", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path: Path, weights: str, part: float) -> None:
        save(tmp_path, net().state_dict())
        save_file(net().state_dict(), tmp_path / "w.safetensors")
        data = (tmp_path / weights).read_bytes()
        (tmp_path / weights).write_bytes(data[: int(len(data) * part)])
        message = load_error(tmp_path, weights)
        assert f"{weights} is" in message
        assert "copy it again" in message

    @pytest.mark.parametrize("weights", ["w.pth", "w.safetensors"])
    def test_another_kind_of_file(self, tmp_path: Path, weights: str) -> None:
        (tmp_path / weights).write_text("<html>not found</html>")
        message = load_error(tmp_path, weights)
        assert "set format to what it is" in message
        assert "weights_only" not in message

    @pytest.mark.filterwarnings("ignore")
    def test_torchscript(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.trace(net(), batch()), tmp_path / "w.pth")
        assert "set format: torchscript" in load_error(tmp_path, "w.pth")
