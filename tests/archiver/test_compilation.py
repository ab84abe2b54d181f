"""Members run with another engine than torch, but only if they then answer as the saved members."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compiled_files import build_and_extract
from fresh_python import printed_by
from member_files import Net, net, write_code, write_ensemble
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from torchserve_ensemble.archiver import compilation
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.shared_backbone import groups_with_shared_backbone
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError
from torchserve_ensemble.handlers.base.threads import SERIAL, ThreadPool
from torchserve_ensemble.handlers.engine.member_scores import MemberScores
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.members import compiled, fused
from torchserve_ensemble.handlers.members.compiled_record import OUTPUTS, RECORD, CompiledRecord
from torchserve_ensemble.handlers.members.executables import Executables
from torchserve_ensemble.handlers.members.fused import FusedMembers
from torchserve_ensemble.handlers.members.loading import LoadedMember
from torchserve_ensemble.handlers.members.openvino_model import OpenVinoModel
from torchserve_ensemble.handlers.members.target import Target
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")


def write_spec(folder: Path, **runtime: object) -> Path:
    """Write a spec with one network in each weights format: state dict, TorchScript and ONNX."""
    write_code(folder)
    save_file(net().state_dict(), folder / "w.safetensors")
    torch.jit.trace(net(), torch.rand(2, 3, 4, 4)).save(str(folder / "w.pt"))
    torch.onnx.export(
        net(),
        (torch.rand(2, 3, 4, 4),),
        folder / "w.onnx",
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
        external_data=False,
    )
    members = [
        {"name": "eager", "architecture": "net.py:Net", "weights": "w.safetensors"},
        {"name": "script", "weights": "w.pt", "format": "torchscript"},
        {"name": "onnx", "weights": "w.onnx"},
    ]
    return write_ensemble(folder, members, runtime=runtime)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folder of the ensemble in an extracted archive, and the messages that the build reported."""
    folder = tmp_path_factory.mktemp("converted")
    (folder / "samples").mkdir()
    pixels = example_images(1)[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "samples" / "a.png")
    spec = write_spec(folder, engine="openvino", micro_batch=5)
    return build_and_extract(spec, folder / "samples")


@pytest.fixture
def extracted(built: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the built ensemble's folder, which a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "ensemble"))


def load(folder: Path, pool: ThreadPool = SERIAL) -> Runtime:
    return Runtime.load(load_spec(folder / "ensemble.yaml"), folder, CPU, pool, compiled=True)


def run(folder: Path, pool: ThreadPool = SERIAL) -> MemberScores:
    return load(folder, pool).run(example_images(12))


def check_falls_back(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Check that the log names the reason, and that the member `eager` runs with torch."""
    with caplog.at_level(logging.INFO):
        result = run(folder)
    assert reason in caplog.text
    assert "eager: runs with" not in caplog.text
    torch.testing.assert_close(result.scores[0], result.scores[1])


@pytest.mark.parametrize("pool", [SERIAL, ThreadPool(2)], ids=["one thread", "two threads"])
def test_every_format_answers_as_the_saved_member(
    built: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture, pool: ThreadPool
) -> None:
    folder, reports = built
    with caplog.at_level(logging.INFO):
        result = run(folder, pool)
    spec = load_spec(folder / "ensemble.yaml")
    expected = Runtime.load(spec, folder, CPU).run(example_images(12))
    for name in ("eager", "script", "onnx"):
        assert f"{name}: runs with openvino in float32" in caplog.text
    torch.testing.assert_close(result.scores, expected.scores, rtol=1e-5, atol=1e-5)
    lines = reports[-1].splitlines()
    (row,) = [line for line in lines if "onnx" in line and "openvino" in line]
    assert "chosen" in row
    assert "float32" in row
    assert row.count(" ms") == 2


def test_the_requirements_list_openvino_if_members_run_with_it(
    built: tuple[Path, list[str]],
) -> None:
    lines = (built[0].parent / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("openvino")]


def test_several_threads_may_call_a_model_at_once(built: tuple[Path, list[str]]) -> None:
    path = built[0] / "compiled" / "eager.xml"
    shared = OpenVinoModel(path, "float32", streams=2, threads=2)
    alone = OpenVinoModel(path, "float32")
    batches = [torch.rand(1 + i % 5, 3, 4, 4) for i in range(60)]
    results = ThreadPool(4).map(shared, batches)
    for result, batch in zip(results, batches, strict=True):
        torch.testing.assert_close(result, alone(batch), rtol=1e-5, atol=1e-6)


def test_an_answer_outlives_the_next_call(built: tuple[Path, list[str]]) -> None:
    model = OpenVinoModel(built[0] / "compiled" / "eager.xml", "float32")
    batch = torch.rand(2, 3, 4, 4)
    first = model(batch)
    before = first.clone()
    model(1 - batch)
    assert torch.equal(first, before)


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = """
import sys
from torchserve_ensemble.handlers.members.openvino_model import import_openvino
import_openvino().Core()
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
print(sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__)
"""
    assert printed_by(code) == ["[]", "openvino.tools.ovc.telemetry_stub"]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_members_run_side_by_side_on_one_thread_each_or_in_turn_on_all_threads(
    built: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    spec = load_spec(built[0] / "ensemble.yaml")
    inputs = [torch.rand(3, 3, 4, 4)] * 3
    # These inputs are not the example images, so the scores differ from those at build.
    monkeypatch.setattr(compiled, "tolerance_of", lambda spec: 1.0)
    for side_by_side in (True, False):
        executables = compiled.load_compiled(
            spec, built[0], inputs, CPU, threads, lambda _, answer=side_by_side: answer
        )
        assert [each.concurrent for each in executables] == [side_by_side and threads > 1] * 3
        assert [each.uses_all_threads for each in executables] == [
            not side_by_side and threads > 1
        ] * 3


def test_the_saved_module_is_not_loaded_beside_its_executable(extracted: Path) -> None:
    (extracted / "w.safetensors").write_bytes(b"")
    run(extracted)


def test_a_model_runs_on_other_machines_and_under_other_versions_of_torch(
    extracted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((extracted / RECORD).read_text())
    content["target"] |= {"torch_version": "1.0", "machine": "Minix", "instructions": ["avx1024"]}
    (extracted / RECORD).write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        run(extracted)
    assert "eager: runs with openvino" in caplog.text


def test_machine_code_for_another_machine_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((extracted / RECORD).read_text())
    content["target"]["torch_version"] = "1.0"
    for entry in content["executables"]:
        entry["engine"] = "aot_inductor"
    (extracted / RECORD).write_text(json.dumps(content))
    check_falls_back(extracted, caplog, "made for torch version 1.0, and this is")


def test_a_model_that_answers_otherwise_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {name: 1 - value for name, value in load_file(extracted / OUTPUTS).items()}
    save_file(outputs, extracted / OUTPUTS)
    check_falls_back(
        extracted, caplog, "eager: the executable for openvino cannot be used (its answers differ"
    )


@pytest.mark.parametrize("name", ["eager.xml", "eager.bin"])
def test_a_model_that_does_not_load_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (extracted / "compiled" / name).write_bytes(b"no model")
    check_falls_back(extracted, caplog, "eager: the executable for openvino cannot be used")


def test_a_missing_openvino_is_reported_with_a_remedy(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "openvino", raising=False)

    def import_module(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(MemberError, match="OpenVINO, which cannot be imported .* pip install"):
        run(extracted)


def test_a_member_that_becomes_no_faster_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MIN_SPEED_UP", 1000)
    reports: list[str] = []
    archive = build_archive(write_spec(tmp_path), tmp_path, report=reports.append)
    assert "no faster" in reports[-1]
    with zipfile.ZipFile(archive) as opened:
        assert not [name for name in opened.namelist() if "compiled/" in name]
        assert b"openvino" not in opened.read("requirements.txt")


def test_with_engine_torch_nothing_is_compiled(tmp_path: Path) -> None:
    reports: list[str] = []
    archive = build_archive(write_spec(tmp_path, engine="torch"), tmp_path, report=reports.append)
    assert reports == []
    with zipfile.ZipFile(archive) as opened:
        assert not [name for name in opened.namelist() if "compiled/" in name]


BRANCHING = """
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        return self.head(x.flatten(1) if x.mean() < 9 else -x.flatten(1))
"""


def write_branching(folder: Path, **runtime: object) -> Path:
    """Write a spec with a member that torch.export cannot export."""
    (folder / "branching.py").write_text(BRANCHING)
    save_file(nn.Linear(48, 3).state_dict(prefix="head."), folder / "w.safetensors")
    one = {"name": "one", "architecture": "branching.py:Branching", "weights": "w.safetensors"}
    return write_ensemble(folder, [one], runtime=runtime)


def test_a_member_that_cannot_be_converted_runs_with_torch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[str] = []
    build_archive(write_branching(tmp_path), tmp_path, report=reports.append)
    printed = capfd.readouterr()
    assert "def forward" not in printed.out + printed.err, "torch.export prints the program"
    assert "GuardOnDataDependentSymNode" in reports[-1].replace("\n", "")


def test_a_demanded_engine_that_cannot_run_a_member_is_an_error(tmp_path: Path) -> None:
    spec = write_branching(tmp_path, engine="openvino")
    with pytest.raises(MemberError, match="member 'one' cannot run with OpenVINO: .* to auto"):
        build_archive(spec, tmp_path)


def test_aot_inductor_is_for_a_gpu(tmp_path: Path) -> None:
    spec = write_branching(tmp_path, engine="aot_inductor", device="cpu")
    with pytest.raises(ArchiveError, match="aot_inductor is for a GPU.* set engine to auto"):
        build_archive(spec, tmp_path)


def test_samples_must_be_a_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no folder with images in it"):
        build_archive(write_spec(tmp_path), tmp_path, samples=tmp_path / "nowhere")


def test_a_newer_processor_runs_what_an_older_one_built() -> None:
    old = Target("2.11", "cpu", "Linux x86_64", ("avx", "avx2"))
    new = replace(old, instructions=("avx", "avx2", "avx512f"))
    assert old.misfit(new) is None
    assert new.misfit(old) == "made for a processor with avx512f, which this one lacks"


@pytest.mark.parametrize("text", ["", "{}", '{"target": {}, "executables": []}', "[]"])
def test_a_damaged_record_is_named(text: str) -> None:
    with pytest.raises(ArchiveError, match="compiled/compiled.json is damaged"):
        CompiledRecord.from_json(text)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an ensemble of three members of one architecture, from an extracted archive."""
    folder = tmp_path_factory.mktemp("alike")
    write_code(folder)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        save_file(Net().state_dict(), folder / f"{seed}.safetensors")
        members.append(
            {"name": f"m{seed}", "architecture": "net.py:Net", "weights": f"{seed}.safetensors"}
        )
    spec = write_ensemble(folder, members, runtime={})
    with pytest.MonkeyPatch.context() as patch:
        # Members as small as these hardly become faster.
        patch.setattr(compilation, "MIN_SPEED_UP", 0.001)
        return build_and_extract(spec)[0]


def one_by_one(runtime: Runtime) -> Runtime:
    """Return a copy of a runtime whose joint executables are removed."""
    alone = copy.copy(runtime)
    alone._executables = Executables(runtime._executables.single)
    return alone


def test_members_of_one_architecture_run_as_one_model(
    alike: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        runtime = load(alike, ThreadPool(2))
    assert "m0, m1, m2: runs with openvino in float32" in caplog.text
    images = example_images(11)
    for num_samples in (1, 4, 5, 11):
        together = runtime.run(images[:num_samples])
        alone = one_by_one(runtime).run(images[:num_samples])
        torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)
        assert together.scores.std(dim=0).min() > 1e-4, "each member has its own weights"


def test_a_joint_model_that_answers_otherwise_is_not_used(
    alike: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(alike, tmp_path / "ensemble"))
    outputs = load_file(folder / OUTPUTS)
    save_file(outputs | {"m1": outputs["m1"].flip(1)}, folder / OUTPUTS)
    with caplog.at_level(logging.INFO):
        runtime = load(folder, ThreadPool(2))
    assert "m0, m1, m2: the executable for openvino cannot be used (its answers" in caplog.text
    assert [type(each) for each in runtime._executables.joint] == [FusedMembers]
    runtime.run(example_images(3))


HEADS = """
from torch import nn

class Heads(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
        )
"""


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an ensemble whose first and last member share a backbone; the other does not."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "heads.py").write_text(HEADS)
    scope: dict[str, type[nn.Module]] = {}
    exec(HEADS, scope)
    members = []
    backbone: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(("first", "other", "last")):
        torch.manual_seed(seed)
        state = scope["Heads"]().state_dict()
        backbone = backbone or {key: value for key, value in state.items() if key[0] != "8"}
        save_file(state | backbone if name == "last" else state, folder / f"{name}.safetensors")
        members.append(
            {"name": name, "architecture": "heads.py:Heads", "weights": f"{name}.safetensors"}
        )
    spec = write_ensemble(
        folder,
        members,
        runtime={"precision": "float32"},
        preprocessing={"shared": {"resize": [64, 64]}},
    )
    with pytest.MonkeyPatch.context() as patch:
        # Every executable is chosen however fast it is, and the three members are not fused.
        patch.setattr(compilation, "MIN_SPEED_UP", 0.001)
        patch.setattr(fused, "_MAX_PARAMETERS_TO_FUSE", 1)
        return build_and_extract(spec)[0]


def test_members_that_share_a_backbone_run_as_one(
    heads: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "_MAX_PARAMETERS_TO_FUSE", 1)
    with caplog.at_level(logging.INFO):
        runtime = load(heads, ThreadPool(2))
    assert "first, last: runs with openvino in float32" in caplog.text
    assert [each.members for each in runtime._executables.joint] == [(0, 2)]
    together = runtime.run(example_images(12))
    alone = one_by_one(runtime).run(example_images(12))
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-5)

    # One of the two alone for some samples: each then runs by itself.
    selected = torch.ones((3, 12), dtype=torch.bool)
    selected[2, :6] = False
    part = runtime.run(example_images(12), selected=selected)
    assert bool((part.states == selected).all())
    torch.testing.assert_close(part.scores[selected], alone.scores[selected], rtol=1e-5, atol=1e-5)


def test_the_backbone_is_computed_once(heads: Path) -> None:
    record = CompiledRecord.from_json((heads / RECORD).read_text())
    (joint,) = [each for each in record.executables if len(each.members) > 1]
    core = importlib.import_module("openvino").Core()
    model = core.compile_model(heads / joint.files[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [each.get_rt_info()["layerType"] for each in model.get_runtime_model().get_ops()]
    assert layers.count("Convolution") == 3, "the backbone has three, and two members share it"


def test_only_members_with_equal_weights_and_one_preprocessing_share_a_backbone() -> None:
    modules = [net(), net(), net()]
    spec = SimpleNamespace(members=["a", "b", "c"], output_of=lambda member: "logits")
    loaded = [LoadedMember("m", module, module) for module in modules]
    assert groups_with_shared_backbone(spec, loaded, [0, 0, 0]) == [(0, 1, 2)]  # type: ignore[arg-type]
    assert groups_with_shared_backbone(spec, loaded, [0, 1, 0]) == [(0, 2)]  # type: ignore[arg-type]
    for value in modules[1].parameters():
        value.data += 1
    assert groups_with_shared_backbone(spec, loaded, [0, 0, 0]) == [(0, 2)]  # type: ignore[arg-type]


def test_own_code_after_the_network_stays_outside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilation, "MIN_SPEED_UP", 0.001)
    write_code(tmp_path)
    (tmp_path / "own.py").write_text("def reverse(output):\n    return output.flip(1)\n")
    (tmp_path / "dicts.py").write_text(
        "import net\n\n\nclass Dicts(net.Net):\n"
        "    def forward(self, x):\n        return {'out': super().forward(x)}\n"
    )
    (tmp_path / "first.py").write_text("def out(output):\n    return output['out']\n")
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    member = {"architecture": "net.py:Net", "weights": "w.safetensors"}
    # Members of one architecture that share all weights: neither fused, nor on a shared backbone.
    members = [
        {**member, "name": "one", "postprocess": "own.py:reverse"},
        {**member, "name": "two", "postprocess": "own.py:reverse"},
        {
            **member,
            "name": "dict",
            "architecture": "dicts.py:Dicts",
            "postprocess": "first.py:out",
        },
    ]
    spec = write_ensemble(tmp_path, members, runtime={}, extra_files=["net.py"])
    folder, reports = build_and_extract(spec)
    assert "its forward gives dict" in reports[-1]
    with caplog.at_level(logging.INFO):
        result = run(folder)
    assert "one: runs with openvino" in caplog.text
    one, two, plain = result.scores
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one, plain.flip(1), rtol=1e-5, atol=1e-5)
