"""TorchScript, torch.export and ONNX: each is read back as written, or refused with a reason."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from member_files import CPU, Planted, batch, check, load, load_error, net
from onnx import TensorProto
from onnx_files import onnx_model
from torch import Tensor, nn

from torchserve_ensemble.handlers.base.errors import MemberError
from torchserve_ensemble.handlers.members.self_contained_formats import load_exported

DYNAMIC = ({0: torch.export.Dim("batch")},)


def script(folder: Path, model: nn.Module | None = None) -> None:
    """Write w.pt, a TorchScript archive."""
    with warnings.catch_warnings():
        # torch marks TorchScript as deprecated; members saved with it stay readable.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model or net()), folder / "w.pt")


def export(folder: Path, model: nn.Module | None = None, dynamic: Any = DYNAMIC) -> None:
    """Write w.pt2, an exported program."""
    program = torch.export.export(model or net(), (batch(2),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "w.pt2")


class TestTorchScript:
    def test_same_outputs(self, tmp_path: Path) -> None:
        script(tmp_path, net().train())
        loaded = load(tmp_path, "w.pt")
        assert torch.allclose(loaded(batch()), net()(batch()), atol=1e-6)
        check(loaded)

    def test_state_dict_without_architecture(self, tmp_path: Path) -> None:
        torch.save(net().state_dict(), tmp_path / "w.pt")
        assert "if it holds a state dict, name the architecture" in load_error(tmp_path, "w.pt")

    def test_whole_pickled_module(self, tmp_path: Path) -> None:
        torch.save(Planted(tmp_path / "trace"), tmp_path / "w.pt")
        assert "not a TorchScript archive" in load_error(tmp_path, "w.pt")
        assert not (tmp_path / "trace").exists()

    def test_truncated(self, tmp_path: Path) -> None:
        script(tmp_path)
        data = (tmp_path / "w.pt").read_bytes()
        (tmp_path / "w.pt").write_bytes(data[: len(data) // 2])
        assert "w.pt is damaged" in load_error(tmp_path, "w.pt")


class TestExported:
    def test_same_outputs(self, tmp_path: Path) -> None:
        export(tmp_path)
        loaded = load(tmp_path, "w.pt2")
        assert torch.allclose(loaded(batch()), net()(batch()), atol=1e-6)
        check(loaded, weights="w.pt2")

    def test_fixed_batch_dimension(self, tmp_path: Path) -> None:
        export(tmp_path, dynamic=None)
        with pytest.raises(MemberError, match=r"batch dimension is fixed.*Dim\('batch'\)"):
            check(load(tmp_path, "w.pt2"), weights="w.pt2")

    def test_exported_in_training_mode(self, tmp_path: Path) -> None:
        export(tmp_path, net().train())
        with pytest.raises(MemberError, match="training mode"):
            check(load(tmp_path, "w.pt2"), weights="w.pt2")

    def test_moves_with_all_that_it_creates(self, tmp_path: Path) -> None:
        class Creates(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, :3] + torch.arange(3, device=x.device)

        export(tmp_path, Creates())
        module = load_exported(tmp_path / "w.pt2", torch.device("meta"))
        assert module(batch().to("meta")).device.type == "meta"

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "w.pt2").write_text("<html>")
        assert "write it with torch.export.save" in load_error(tmp_path, "w.pt2")
        torch.save(net().state_dict(), tmp_path / "w.pt2")
        assert "holds no exported program" in load_error(tmp_path, "w.pt2")

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ("data/constants/opaque_obj_0", "a constant that is no tensor"),
            ("data/constants/custom_obj_0", "a constant that is no tensor"),
            ("Data/Constants/OPAQUE_OBJ_0", "a constant that is no tensor"),
            ("data/aotinductor/model/model.so", "native code"),
        ],
    )
    def test_records_that_would_run_are_refused(
        self, tmp_path: Path, record: str, expected: str
    ) -> None:
        export(tmp_path)
        rewrite(tmp_path / "w.pt2", lambda name, content: content, {record: b"anything"})
        assert expected in load_error(tmp_path, "w.pt2")

    def test_planted_sample_inputs(self, tmp_path: Path) -> None:
        """torch.export.load alone would run the planted code, as the last two lines show."""
        export(tmp_path)
        trace, path = tmp_path / "trace", tmp_path / "w.pt2"
        buffer = io.BytesIO()
        torch.save(Planted(trace), buffer)

        def plant(name: str, content: bytes) -> bytes:
            return buffer.getvalue() if "sample_inputs" in name else content

        rewrite(path, plant)
        message = load_error(tmp_path, "w.pt2")
        assert "cannot be read as an exported program" in message
        assert not trace.exists()
        with contextlib.suppress(Exception):
            torch.export.load(path)
        assert trace.exists()

    def test_planted_weight(self, tmp_path: Path) -> None:
        export(tmp_path)
        trace = tmp_path / "trace"
        buffer = io.BytesIO()
        torch.save(Planted(trace), buffer)

        def plant(name: str, content: bytes) -> bytes:
            if name.endswith("weights_config.json"):
                return content.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                    b'"use_pickle":false', b'"use_pickle":true'
                )
            return buffer.getvalue() if "/weights/weight_" in name else content

        rewrite(tmp_path / "w.pt2", plant)
        load_error(tmp_path, "w.pt2")
        assert not trace.exists()

    @pytest.mark.parametrize("value", [None, "1"])
    def test_the_environment_is_left_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
        monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
        export(tmp_path)
        load(tmp_path, "w.pt2")
        assert os.environ.get(name) == value
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def rewrite(
    path: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None
) -> None:
    """Write an archive again with other contents.

    It is not compressed, since torch's reader reads no compressed archives.

    Args:
        path: the archive.
        change: returns the new contents of a file from its name and contents.
        more: name of each further file -> its contents.
    """
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(contents)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, change(name, content))
        for name, content in (more or {}).items():
            archive.writestr(f"{root}/{name}", content)


class TestOnnx:
    def test_same_outputs(self, tmp_path: Path) -> None:
        expected = onnx_model(tmp_path)
        loaded = load(tmp_path, "w.onnx")
        assert loaded.module is None
        assert torch.allclose(loaded(batch()), expected, atol=1e-5)
        check(loaded, weights="w.onnx")

    def test_layout_in_memory_does_not_matter(self, tmp_path: Path) -> None:
        expected = onnx_model(tmp_path)
        channels_last = batch().to(memory_format=torch.channels_last)
        assert torch.allclose(load(tmp_path, "w.onnx")(channels_last), expected, atol=1e-5)

    def test_fixed_batch_dimension(self, tmp_path: Path) -> None:
        onnx_model(tmp_path, batch_size=1)
        with pytest.raises(MemberError, match="batch dimension is fixed"):
            check(load(tmp_path, "w.onnx"), weights="w.onnx")

    def test_several_inputs(self, tmp_path: Path) -> None:
        onnx_model(tmp_path, inputs=2)
        assert "takes (x0: tensor(float), x1: tensor(float))" in load_error(tmp_path, "w.onnx")

    def test_other_input(self, tmp_path: Path) -> None:
        onnx_model(tmp_path, kind=TensorProto.FLOAT16)
        assert "takes (x0: tensor(float16)); a member takes" in load_error(tmp_path, "w.onnx")

    def test_several_outputs(self, tmp_path: Path) -> None:
        onnx_model(tmp_path, outputs=2)
        assert "gives (y0: tensor(float), y1: tensor(float))" in load_error(tmp_path, "w.onnx")

    def test_external_data_that_is_missing(self, tmp_path: Path) -> None:
        onnx_model(tmp_path)
        model = onnx.load(tmp_path / "w.onnx")
        onnx.save(
            model,
            tmp_path / "w.onnx",
            save_as_external_data=True,
            location="w.data",
            size_threshold=0,
        )
        (tmp_path / "w.data").unlink()
        assert "needs those files in extra_files" in load_error(tmp_path, "w.onnx")

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "w.onnx").write_bytes(b"nothing")
        assert "cannot be read as an ONNX model" in load_error(tmp_path, "w.onnx")

    def test_onnxruntime_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        onnx_model(tmp_path)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        message = load_error(tmp_path, "w.onnx")
        assert "pip install 'torchserve-ensemble[onnx]'" in message


@pytest.mark.parametrize("name", ["w.pt", "w.pt2", "w.onnx"])
def test_outputs_are_on_the_device_of_the_member(tmp_path: Path, name: str) -> None:
    {"w.pt": script, "w.pt2": export, "w.onnx": onnx_model}[name](tmp_path)
    assert load(tmp_path, name)(batch()).device == CPU
