"""Tests the conversion of checkpoints: which tensors are taken, and that nothing else survives."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from member_files import load, net, write_code
from torch import Tensor, nn

from torchserve_ensemble.archiver.checkpoint_tensors import (
    Contents,
    answer,
    chosen,
    read_contents,
    without_prefix,
)
from torchserve_ensemble.archiver.convert import _checked, convert
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import MemberError


class Net(nn.Module):
    """A module with everything that a state dict has, or must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.inner = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.zeros(1), persistent=False)
        self.register_parameter("missing", None)
        self.loss_weights = torch.ones(5)


class Options(dict[str, Any]):
    """A dict of a class that the confined process does not know."""


class Touch:
    """An object whose pickle makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def saved(content: object, *, is_zip: bool = True) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    file.seek(0)
    return file


def contents(content: object, *, is_zip: bool = True) -> Contents:
    return read_contents(saved(content, is_zip=is_zip))


def converted(content: object, **options: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert in this process, which is safe with the files that these tests write."""
    report, *blocks = answer(saved(content), **({"key": None, "prefix": None} | options))
    assert isinstance(report, dict)
    return report, safetensors.torch.load(b"".join(blocks))


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_whole_module_gives_its_state_dict_without_its_class(is_zip: bool) -> None:
    whole = Net()
    found = contents(whole, is_zip=is_zip)
    assert_equal(found.tensors[""], dict(whole.state_dict()))
    assert f"{__name__}.Net" in found.asked_for


def test_a_training_checkpoint() -> None:
    trained = Net()
    content = {
        "state_dict": OrderedDict({f"module.{k}": v for k, v in trained.state_dict().items()}),
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        ],
        "hyper_parameters": argparse.Namespace(rate=0.1, folder=PurePosixPath("x")),
        "epoch": 3,
        "best": np.float64(0.5),
        "counts": defaultdict(int, a=1),
    }
    report, tensors = converted(content)
    assert_equal(tensors, dict(trained.state_dict()))
    assert (report["path"], report["prefix"]) == ("state_dict", "module.")
    assert report["others"]["hyper_parameters"] == "argparse.Namespace"
    assert report["others"]["epoch"] == "int"
    assert "pathlib.PurePosixPath" in report["asked_for"]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "net"])
def test_the_usual_keys(key: str) -> None:
    report, tensors = converted({key: {"w": torch.ones(2)}, "extra": {"w": torch.zeros(3)}})
    assert report["path"] == key
    assert report["other_tensors"] == {"extra": 1}
    assert_equal(tensors, {"w": torch.ones(2)})


def test_a_key_takes_another_set_at_any_depth() -> None:
    content = {"model": {"w": torch.ones(2)}, "ema": [Options(average={"w": torch.zeros(3)})]}
    _, tensors = converted(content, key="ema.0.average")
    assert_equal(tensors, {"w": torch.zeros(3)})
    with pytest.raises(MemberError, match=r"no tensors at 'ema'; it has .*model \(1\), ema.0.aver"):
        converted(content, key="ema")


def test_several_unusual_sets_need_a_key() -> None:
    content = {"generator": {"w": torch.ones(2)}, "critic": {"w": torch.ones(2)}}
    with pytest.raises(MemberError, match=r"several sets .*generator \(1\), critic \(1\); .*--key"):
        converted(content)


def test_prefixes() -> None:
    one = torch.ones(1)
    wrapped = {"module._orig_mod.a": one, "module._orig_mod.b": one}
    assert without_prefix(wrapped, None) == ({"a": one, "b": one}, "module._orig_mod.")
    partly = {"module.a": one, "b": one}
    assert without_prefix(partly, None) == (partly, "")
    assert without_prefix({"model.a": one, "loss.b": one}, "model.") == ({"a": one}, "model.")
    with pytest.raises(MemberError, match="no tensor's name begins with 'net.'; names are model.a"):
        without_prefix({"model.a": one}, "net.")


def test_types_shapes_and_shared_tensors() -> None:
    base = torch.arange(12, dtype=torch.float32)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.view(3, 4).T,
        "half": torch.ones(2, dtype=torch.float16),
        "brain": torch.ones(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "long": torch.tensor(7),
        "double": torch.ones(1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.ones(2)),
        "complex": torch.tensor([1 + 2j]).conj(),
    }
    report, written = converted(tensors)
    assert_equal(written, {name: each.detach() for name, each in tensors.items()})
    assert report["shared"] == 2
    assert report["bytes"] == sum(each.nbytes for each in written.values())


def test_arrays_of_numpy_become_tensors() -> None:
    content = {"a": np.arange(3, dtype=">f4"), "b": np.array(["text"]), "c": np.ones((2, 2))}
    report, tensors = converted(content)
    assert_equal(tensors, {"a": torch.arange(3.0), "c": torch.ones(2, 2, dtype=torch.float64)})
    assert report["others"] == {"b": "ndarray"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (7, "holds no tensors, but an object of the type int"),
        ({"epoch": 3}, "holds no tensors, but an object of the type dict"),
        ({"w": torch.eye(2).to_sparse()}, "'w' .*sparse_coo.* cannot be stored as safetensors"),
        ({"__metadata__": torch.ones(1)}, "which safetensors reserves"),
        ({"w": torch.ones(1, device="meta")}, "'w' .*meta.* cannot be stored"),
    ],
)
def test_what_cannot_be_converted(content: object, message: str) -> None:
    with pytest.raises(MemberError, match=message):
        converted(content)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(MemberError, match="an object of posix.system, which was not called"):
        contents(Touch(marker))
    report, tensors = converted({"state_dict": {"w": torch.ones(1)}, "x": Touch(marker)})
    assert report["others"] == {"x": "posix.system"}
    assert list(tensors) == ["w"]
    assert not marker.exists()


def test_an_object_that_holds_itself_ends() -> None:
    content: dict[str, Any] = {"w": torch.ones(1)}
    content["self"] = content
    _, tensors = converted(content)
    assert list(tensors) == ["w"]


def test_the_first_usual_key_wins_over_the_top() -> None:
    top = Contents(tensors={"": {}, "state_dict": {}})
    assert chosen(top, None) == "state_dict"
    assert chosen(top, "") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_verb_makes_weights_that_a_spec_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_code(tmp_path)
    module = net()
    marker = tmp_path / "marker"
    content = {"model": module, "callbacks": Touch(marker), "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=False)
    weights = tmp_path / "w.safetensors"
    assert main(["convert", str(tmp_path / "last.ckpt"), str(weights)]) == 0
    printed = capsys.readouterr().out
    assert "tensors, 0.0 MB, from 'model'" in printed
    assert "left out, since they are no tensors: callbacks (posix.system), epoch (int)" in printed
    assert not marker.exists()
    batch = torch.rand(2, 3, 4, 4)
    loaded = load(tmp_path, "w.safetensors", architecture="net.py:Net")
    assert torch.allclose(loaded(batch), module(batch))
    assert main(["convert", str(tmp_path / "last.ckpt"), str(weights)]) == 1
    assert "exists; name another file, or replace it with --force" in capsys.readouterr().err


def test_mistakes_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")
    for arguments, message in [
        ([source, target], "a.pt: no such file"),
        ([source, source], "must end with .safetensors"),
        ([source, target, "--timeout", "0"], "--timeout 0.0: must be a number above 0"),
        ([source, target, "--memory", "-1"], "--memory -1: must be a number above 0"),
    ]:
        assert main(["convert", *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_damaged_files_leave_nothing_behind(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(saved({"w": torch.ones(1000)}).getvalue()[:-500])
    with pytest.raises(MemberError, match="damaged.pt: cannot be loaded"):
        convert(damaged, tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.pt"]


def test_an_answer_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(b"\xff" * 64)
    with pytest.raises(MemberError, match="did not answer with tensors"):
        _checked({"bytes": 1}, tmp_path / "answer", tmp_path / "last.ckpt")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "answer")
    with pytest.raises(MemberError, match="did not answer with tensors"):
        _checked({"bytes": "many"}, tmp_path / "answer", tmp_path / "last.ckpt")


def test_torchscript_needs_no_conversion() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), file)
    file.seek(0)
    with pytest.raises(MemberError, match="TorchScript archive.*format: torchscript"):
        read_contents(file)
