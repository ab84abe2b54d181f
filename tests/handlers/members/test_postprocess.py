"""A function of the user's own makes scores of what a network returns."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from member_files import net, write_code, write_ensemble
from onnx_files import onnx_model
from PIL import Image
from probe_ensemble import ask, image, probes, refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.errors import EnsembleError, MemberError, SpecError
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.members.loading import load_member
from torchserve_ensemble.handlers.spec import load_spec

OWN = """
import torch


def logits(output):
    return output["out"]


def first(output):
    return output[0]


def reversed_labels(output):
    return output.flip(1)


def probabilities(output):
    return output.softmax(dim=1)


def wrong_key(output):
    return output["logits"]


def labels(output):
    return output.argmax(dim=1)


def too_few(output):
    return output[:, :1]


def array(output):
    return output.numpy()


def nan(output):
    return output / 0 * 0


def not_above(output):
    if output.max() > 3.5:
        raise ValueError("too sure")
    return output
"""
DICT_CODE = """
from torch import nn

class DictNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        return {"out": self.head(x.flatten(1)), "aux": x}
"""


class TupleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x.flatten(1)), x


class DictNet(TupleNet):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": self.head(x.flatten(1)), "aux": x}


def spec(folder: Path, *members: dict[str, Any], **settings: Any) -> Path:
    (folder / "own.py").write_text(OWN)
    return write_ensemble(folder, members, **settings)


def eager(folder: Path, **keys: Any) -> dict[str, Any]:
    write_code(folder, DICT_CODE)
    torch.manual_seed(0)
    save_file(DictNet().state_dict(), folder / "d.safetensors")
    member = {"name": "eager", "architecture": "net.py:DictNet", "weights": "d.safetensors"}
    return {**member, "postprocess": "own.py:logits", **keys}


def scripted(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(TupleNet()), folder / "t.pt")
    return {"name": "scripted", "weights": "t.pt", "postprocess": "own.py:first"}


def exported(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(DictNet(), (torch.rand(2, 3, 4, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "e.pt2")
    return {"name": "exported", "weights": "e.pt2", "postprocess": "own.py:logits"}


def pixels() -> Tensor:
    return torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(3)).byte()


def test_eager_scripted_and_exported_members(tmp_path: Path) -> None:
    members = [eager(tmp_path), scripted(tmp_path), exported(tmp_path)]
    (found,) = Ensemble.load(spec(tmp_path, *members)).predict(pixels(), include="scores")
    torch.manual_seed(0)
    network = TupleNet()
    expected = network(pixels().permute(2, 0, 1)[None] / 255)[0].softmax(dim=1)[0]
    assert list(found.members) == ["eager", "scripted", "exported"]
    for answer in found.members.values():
        assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_onnx_model_of_several_outputs_gives_a_dict(tmp_path: Path) -> None:
    onnx_model(tmp_path, outputs=2)
    (tmp_path / "last.py").write_text("def last(output):\n    return output['y1']\n")
    member = {"name": "onnx", "weights": "w.onnx"}
    path = spec(tmp_path, {**member, "postprocess": "last.py:last"})
    (found,) = Ensemble.load(path).predict(pixels(), include="scores")
    assert sum(found.scores.values()) == pytest.approx(1)
    with pytest.raises(MemberError, match="or name a postprocess function"):
        Ensemble.load(spec(tmp_path, member))


def test_labels_in_another_order(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    member = {"architecture": "net.py:Net", "weights": "w.safetensors"}
    path = spec(
        tmp_path,
        {**member, "name": "plain"},
        {**member, "name": "reversed", "postprocess": "own.py:reversed_labels"},
        {
            **member,
            "name": "probable",
            "postprocess": "own.py:probabilities",
            "output": "probabilities",
        },
    )
    (found,) = Ensemble.load(path).predict(pixels(), include="scores")
    plain, other, probable = (answer.scores for answer in found.members.values())
    assert list(other.values()) == pytest.approx(list(plain.values())[::-1])
    assert list(probable.values()) == pytest.approx(list(plain.values()))


def test_members_with_a_function_are_not_fused(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    member = {"architecture": "net.py:Net", "weights": "w.safetensors"}
    own = {**member, "postprocess": "own.py:reversed_labels"}
    path = spec(
        tmp_path,
        {**member, "name": "a"},
        {**own, "name": "b"},
        {**member, "name": "c"},
        {**own, "name": "d"},
    )
    service = load_service(load_spec(path), tmp_path)
    fused = [executable.members for executable in service._runtime.executables.joint]
    assert fused == [(0, 2)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_key", "postprocess own.py:wrong_key: own.py, line 22: KeyError: 'logits'"),
        ("first", "postprocess own.py:first: own.py, line 10: KeyError: 0"),
        ("nothing", "has no class or function 'nothing'"),
    ],
)
def test_a_function_that_fails_stops_the_build(tmp_path: Path, function: str, message: str) -> None:
    path = spec(tmp_path, eager(tmp_path, postprocess=f"own.py:{function}"))
    with pytest.raises(EnsembleError, match="ensemble 'trees', member 'eager'.*" + message):
        build_archive(path, tmp_path / "store")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("labels", "own.py:labels returned numbers of torch.int64; it must return a float tensor"),
        ("too_few", r"own.py:too_few returned the shape \(3, 1\) for 3 samples.*\(N, 3\)"),
        ("array", "own.py:array returned ndarray"),
        ("nan", "not finite.*or own.py:nan divides by zero"),
    ],
)
def test_a_wrong_result_stops_the_build(tmp_path: Path, function: str, message: str) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    member = {"name": "m", "architecture": "net.py:Net", "weights": "w.safetensors"}
    with pytest.raises(MemberError, match=message):
        Ensemble.load(spec(tmp_path, {**member, "postprocess": f"own.py:{function}"}))


def test_without_a_function_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="forward gave dict, not one tensor; set postprocess"):
        Ensemble.load(spec(tmp_path, eager(tmp_path, postprocess=None)))


def test_a_failure_stays_with_its_sample(tmp_path: Path) -> None:
    probes(tmp_path, bounds=(0.5, 0.4))
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "ensemble.yaml"
    content = json.loads(path.read_text())
    content["failures"] = {"on_failure": "drop"}
    content["members"][1]["postprocess"] = "own.py:not_above"
    (tmp_path / "ensemble.yaml").write_text(json.dumps(content))
    service = load_service(load_spec(path), tmp_path)
    # Logits of +-5 (brightness - 0.4): 3 at 1.0, and 2 at 0.8.
    assert "missing_members" not in str(ask(service, image(0.8)))
    content["members"][1]["arguments"]["raises_above"] = 3.0
    own = OWN.replace("3.5", "2.5")
    (tmp_path / "own.py").write_text(own)
    service = load_service(load_spec(path), tmp_path)
    good, bad = ask(service, image(0.8), image(1.0))["predictions"]
    assert set(good["members"]) == {"a", "b"}
    reasons = json.dumps(bad)
    assert "postprocess own.py:not_above: own.py, line 43: ValueError: too sure" in reasons
    strict = json.loads(path.read_text())
    del strict["failures"]
    path.write_text(json.dumps(strict))
    message = refusal(load_service(load_spec(path), tmp_path), image(1.0))["message"]
    assert "own.py, line 43" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [("own.py", "members.0..postprocess"), ("own2.py:logits", "did you mean 'own.py'")],
)
def test_mistakes_in_the_spec(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(spec(tmp_path, eager(tmp_path, postprocess=text)))


def test_the_archive_carries_the_file(tmp_path: Path) -> None:
    path = spec(tmp_path, eager(tmp_path))
    archive = build_archive(path, tmp_path / "store")
    with zipfile.ZipFile(archive) as opened:
        assert "ensemble/own.py" in opened.namelist()
    assert "ensemble/own.py" in verify_archive(archive).files
    picture = Image.fromarray(pixels().numpy())
    (found,) = Ensemble.load(archive).predict(picture)
    (expected,) = Ensemble.load(path).predict(picture)
    assert found.members == expected.members


def test_half_precision_reaches_the_function_as_float32(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\n\ndef logits(output):\n"
        "    assert output['out'].dtype is torch.float32\n"
        "    return torch.from_numpy(output['out'].numpy() + 0)\n"
    )
    path = write_ensemble(tmp_path, [eager(tmp_path)], runtime={"precision": "bfloat16"})
    loaded = load_spec(path)
    service = load_service(loaded, tmp_path)
    assert service is not None
    member = load_member(loaded, loaded.members[0], tmp_path, torch.device("cpu"))
    assert member(torch.rand(2, 3, 4, 4)).dtype is torch.float32
