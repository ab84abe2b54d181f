"""Architectures are built by their torchvision name, or from a class in the user's file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from member_files import CODE, member, write_code
from torch import nn
from torchvision.models import ResNet

from torchserve_ensemble.handlers.base.errors import MemberError
from torchserve_ensemble.handlers.members.architecture import build_architecture, build_without_data


def build(folder: Path, architecture: str, **arguments: Any) -> nn.Module:
    one = member("w.safetensors", architecture=architecture, arguments=arguments)
    return build_architecture(one, folder)


def build_error(folder: Path, architecture: str, **arguments: Any) -> str:
    with pytest.raises(MemberError) as caught:
        build(folder, architecture, **arguments)
    return str(caught.value)


class TestTorchvision:
    def test_by_name(self, tmp_path: Path) -> None:
        model = build(tmp_path, "torchvision.models.resnet18", num_classes=7)
        assert isinstance(model, ResNet)
        assert model.fc.out_features == 7

    def test_unknown(self, tmp_path: Path) -> None:
        message = build_error(tmp_path, "torchvision.models.resnet81")
        assert "no image classification model 'resnet81'; did you mean 'resnet" in message

    @pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "segmentation.fcn_resnet50"])
    def test_other_tasks_are_refused(self, tmp_path: Path, name: str) -> None:
        assert "no image class" in build_error(tmp_path, f"torchvision.models.{name}")

    def test_wrong_argument(self, tmp_path: Path) -> None:
        message = build_error(tmp_path, "torchvision.models.resnet18", classes=7)
        assert "resnet18(classes=7) failed: TypeError" in message
        assert "its arguments are (" in message

    def test_weights_are_never_downloaded(self, tmp_path: Path) -> None:
        message = build_error(tmp_path, "torchvision.models.resnet18", weights="DEFAULT")
        assert "remove the argument weights" in message

    @pytest.mark.parametrize(
        ("name", "possible"), [("resnet18", True), ("regnet_y_400mf", False), ("none", False)]
    )
    def test_without_data(self, name: str, possible: bool) -> None:
        arguments = {"nonsense": 1} if name == "none" else {}
        architecture = f"torchvision.models.{'resnet18' if name == 'none' else name}"
        one = member("w.safetensors", architecture=architecture, arguments=arguments)
        model = build_without_data(one)
        assert (model is not None) is possible
        if model is not None:
            assert all(parameter.is_meta for parameter in model.parameters())

    def test_own_classes_are_never_built_without_data(self) -> None:
        assert build_without_data(member("w.safetensors")) is None


class TestFile:
    def test_class(self, tmp_path: Path) -> None:
        write_code(tmp_path)
        model = build(tmp_path, "net.py:Net", outputs=5)
        assert type(model).__name__ == "Net"
        assert model.get_submodule("head").out_features == 5

    def test_function_in_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "code").mkdir()
        code = "from torch import nn\ndef make(width):\n    return nn.Linear(width, 1)\n"
        (tmp_path / "code" / "nets.py").write_text(code)
        assert isinstance(build(tmp_path, "code/nets.py:make", width=4), nn.Linear)

    def test_two_members_share_a_file(self, tmp_path: Path) -> None:
        write_code(tmp_path)
        assert type(build(tmp_path, "net.py:Net")) is type(build(tmp_path, "net.py:Net"))

    def test_a_changed_file_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        write_code(tmp_path)
        build(tmp_path, "net.py:Net")
        stamp = (tmp_path / "net.py").stat().st_mtime_ns
        write_code(tmp_path, CODE.replace("outputs=3", "outputs=4"))
        # The new file has the time and the length of the first, so that only the contents differ.
        os.utime(tmp_path / "net.py", ns=(stamp, stamp))
        assert build(tmp_path, "net.py:Net").get_submodule("head").out_features == 4

    def test_imports_its_neighbours(self, tmp_path: Path) -> None:
        """It may also do so while it is built.

        Afterwards Python's path is as before, and no module is shared with another ensemble.
        """
        before = list(sys.path)
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "member_blocks.py").write_text(f"NAME = {name!r}\n")
            (folder / "member_late.py").write_text(f"NAME = {name!r}\n")
            code = """
                from torch import nn
                from member_blocks import NAME
                class Net(nn.Module):
                    def __init__(self):
                        super().__init__()
                        from member_late import NAME as LATE
                        self.names = (NAME, LATE)
            """
            write_code(folder, code)
            assert build(folder, "net.py:Net").names == (name, name)
        assert sys.path == before

    @pytest.mark.parametrize(
        ("code", "architecture", "expected"),
        [
            (CODE, "net.py:Nett", "net.py has no class or function 'Nett'; did you mean 'Net'?"),
            ("import nowhere_to_be_found", "net.py:Net", "listed in extra_files"),
            ("def (", "net.py:Net", "net.py cannot be imported: SyntaxError"),
            ("def make():\n    return 3", "net.py:make", "returned int, not a torch.nn.Module"),
            (CODE, "net.py:Net", "failed: TypeError"),
            (CODE, "other.py:Net", "other.py cannot be read: No such file"),
            (CODE, "timm.resnet18", "neither torchvision.models.NAME nor FILE.py:CLASS"),
        ],
    )
    def test_errors(self, tmp_path: Path, code: str, architecture: str, expected: str) -> None:
        write_code(tmp_path, code)
        arguments = {"outputs": "many"} if expected == "failed: TypeError" else {}
        assert expected in build_error(tmp_path, architecture, **arguments)

    def test_wrong_argument_names_the_signature(self, tmp_path: Path) -> None:
        write_code(tmp_path)
        assert "its arguments are (outputs=3)" in build_error(tmp_path, "net.py:Net", classes=2)

    def test_loading_another_ensemble_leaves_the_first_ones_code(self, tmp_path: Path) -> None:
        models = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            write_code(tmp_path / name)
            models.append(build(tmp_path / name, "net.py:Net"))
        for model in models:
            assert sys.modules[type(model).__module__].Net is type(model)

    def test_a_failed_import_leaves_nothing_behind(self, tmp_path: Path) -> None:
        before = set(sys.modules)
        write_code(tmp_path, "raise RuntimeError('broken')")
        build_error(tmp_path, "net.py:Net")
        assert set(sys.modules) == before
