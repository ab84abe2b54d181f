"""Compiled members answer as the saved ones, and are used only where they do."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compiled_files import build_and_extract, needs_compiler
from fresh_python import printed_by
from member_files import Net, net, write_code, write_ensemble
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from torchserve_ensemble.archiver import libraries, trial
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.shared_backbone import sharing
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError
from torchserve_ensemble.handlers.base.threads import ThreadPool
from torchserve_ensemble.handlers.engine.member_scores import MemberScores
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.example_inputs import example_images
from torchserve_ensemble.handlers.members import aot_library, fused
from torchserve_ensemble.handlers.members.aot_library import AotLibrary, read_constants
from torchserve_ensemble.handlers.members.compiled_record import OUTPUTS, RECORD, CompiledRecord
from torchserve_ensemble.handlers.members.executables import Executables
from torchserve_ensemble.handlers.members.fused import FusedMembers
from torchserve_ensemble.handlers.members.loading import LoadedMember
from torchserve_ensemble.handlers.members.target import Target
from torchserve_ensemble.handlers.spec import load_spec

CPU = torch.device("cpu")


def write_spec(folder: Path, **runtime: object) -> Path:
    """A module and a TorchScript member."""
    write_code(folder)
    save_file(net().state_dict(), folder / "w.safetensors")
    torch.jit.trace(net(), torch.rand(2, 3, 4, 4)).save(str(folder / "w.pt"))
    members = [
        {"name": "eager", "architecture": "net.py:Net", "weights": "w.safetensors"},
        {"name": "script", "weights": "w.pt", "format": "torchscript"},
    ]
    return write_ensemble(folder, members, runtime={"compile": True} | runtime)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The extracted archive's ensemble, and what the build said."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "samples").mkdir()
    pixels = example_images(1)[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "samples" / "a.png")
    spec = write_spec(folder, micro_batch=5)
    with pytest.MonkeyPatch.context() as patch:
        # So small a member is no faster compiled.
        patch.setattr(trial, "_MIN_SPEED_UP", 0.001)
        return build_and_extract(spec, folder / "samples")


@pytest.fixture
def extracted(built: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "ensemble"))


def run(folder: Path) -> MemberScores:
    runtime = Runtime.load(load_spec(folder / "ensemble.yaml"), folder, CPU, compiled=True)
    return runtime.run(example_images(12))


def check_falls_back(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    with caplog.at_level(logging.INFO):
        found = run(folder)
    assert reason in caplog.text
    assert "the compiled executable runs" not in caplog.text
    torch.testing.assert_close(found.scores[0], found.scores[1])


@needs_compiler
def test_a_compiled_member_answers_as_the_saved_one(
    built: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, said = built
    with caplog.at_level(logging.INFO):
        # Batches of five, five and two: the library takes any number up to the micro-batch.
        found = run(folder)
    assert "eager: the compiled executable runs, in float32" in caplog.text
    assert said[0].startswith("member 'eager' compiled in float32: its scores differ by at most")
    assert (
        said[1] == "member 'script' is not compiled: it is saved as torchscript, and runs as that"
    )
    torch.testing.assert_close(found.scores[0], found.scores[1], rtol=1e-5, atol=1e-5)


@needs_compiler
def test_several_threads_may_run_a_library_at_once(built: tuple[Path, list[str]]) -> None:
    (path,) = (built[0] / "compiled").glob("*.so")
    library, alone = (AotLibrary(path, (3, 4, 4), 5, copies=n) for n in (2, 1))
    batches = [torch.rand(1 + i % 5, 3, 4, 4) for i in range(60)]
    found = ThreadPool(4).map(library, batches)
    assert all(torch.equal(each, alone(batch)) for each, batch in zip(found, batches, strict=True))


@needs_compiler
def test_a_library_refuses_what_it_was_not_compiled_for(built: tuple[Path, list[str]]) -> None:
    (path,) = (built[0] / "compiled").glob("*.so")
    library = AotLibrary(path, (3, 4, 4), 5)
    with pytest.raises(MemberError, match="takes float32 on the CPU"):
        library(torch.zeros((1, 3, 4, 4), dtype=torch.float64))
    with pytest.raises(MemberError, match=r"1 to 5 samples of \(3, 4, 4\), not \(1, 3, 5, 4\)"):
        library(torch.zeros((1, 3, 5, 4)))


@needs_compiler
def test_a_convolutions_weights_are_laid_out_at_build(built: tuple[Path, list[str]]) -> None:
    (path,) = (built[0] / "compiled").glob("*.so")
    weights = read_constants(path)
    assert ("4x3x3x3", True) in {("x".join(map(str, w.shape)), bool(w.layout)) for w in weights}
    assert all(weight.offset % 64 == 0 for weight in weights)
    # oneDNN prints every operation: it would reorder the weight before each convolution.
    code = f"""
import torch
from pathlib import Path
from torchserve_ensemble.handlers.members.aot_library import AotLibrary
library = AotLibrary(Path({str(path)!r}), (3, 4, 4), 5)
for samples in (1, 2, 4):
    library(torch.rand(samples, 3, 4, 4))
"""
    printed = printed_by(code, ONEDNN_VERBOSE="1")
    assert sum(",convolution," in line for line in printed) >= 3
    assert not [line for line in printed if ",reorder," in line and "4x3x3x3" in line]


@needs_compiler
def test_images_of_one_channel_or_one_pixel_have_no_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.Flatten(),
    ).eval()
    (tmp_path / "compiled").mkdir()
    batch = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        program = partial(
            torch.export.export,
            module,
            (batch,),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
        )
        file = libraries.compile_library(program, tmp_path, "gray", CPU)
        expected = module(batch)
    library = AotLibrary(tmp_path / file, (1, 8, 8), 8)
    torch.testing.assert_close(library(batch), expected, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_an_earlier_torchs_library_copies_its_weights(
    built: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (built[0] / "compiled").glob("*.so")
    batch = torch.rand(3, 3, 4, 4)
    expected = AotLibrary(path, (3, 4, 4), 5)(batch)
    monkeypatch.setattr(aot_library, "_WITH_WEIGHTS", "no_such_function")
    assert torch.equal(AotLibrary(path, (3, 4, 4), 5)(batch), expected)


@needs_compiler
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{}]", "weights.json is damaged"),
        ("[]", "weights.json does not fit eager-float32.so"),
        (None, "No such file"),
    ],
)
def test_a_library_whose_weights_are_not_known_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture, content: str | None, reason: str
) -> None:
    (path,) = (extracted / "compiled").glob("*.weights.json")
    path.unlink() if content is None else path.write_text(content)
    check_falls_back(extracted, caplog, reason)


@needs_compiler
def test_the_saved_module_is_not_loaded_beside_it(extracted: Path) -> None:
    (extracted / "w.safetensors").write_bytes(b"")
    run(extracted)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("torch_version", "1.0", "made for torch version 1.0, and this is"),
        ("machine", "Minix m68k", "made for machine Minix m68k"),
        ("instructions", ["avx1024"], "made for a processor with avx1024, which this one lacks"),
    ],
)
def test_elsewhere_the_members_run_as_saved(
    extracted: Path, caplog: pytest.LogCaptureFixture, name: str, value: object, reason: str
) -> None:
    content = json.loads((extracted / RECORD).read_text())
    content["target"][name] = value
    (extracted / RECORD).write_text(json.dumps(content))
    check_falls_back(extracted, caplog, reason)


@needs_compiler
def test_a_library_that_answers_otherwise_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {
        name: value + 1 - value * 2 for name, value in load_file(extracted / OUTPUTS).items()
    }
    save_file(outputs, extracted / OUTPUTS)
    check_falls_back(
        extracted, caplog, "eager: the compiled executable cannot be used (its answers differ"
    )


@needs_compiler
def test_a_library_that_does_not_load_is_not_used(
    extracted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (library,) = (extracted / "compiled").glob("*.so")
    library.write_bytes(b"no library")
    check_falls_back(extracted, caplog, "eager: the compiled executable cannot be used")


@needs_compiler
def test_a_member_that_gains_nothing_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_MIN_SPEED_UP", 1000)
    said: list[str] = []
    archive = build_archive(write_spec(tmp_path), tmp_path, report=said.append)
    assert "member 'eager' is not compiled: that makes it no faster" in said[0]
    with zipfile.ZipFile(archive) as opened:
        assert not [name for name in opened.namelist() if "compiled/" in name]


def test_without_a_compiler_the_build_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ArchiveError, match=r"no-such-compiler: install one \(apt install g\+\+\)"):
        build_archive(write_spec(tmp_path), tmp_path / "store")
    assert not (tmp_path / "store").exists()


@needs_compiler
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
def alike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The extracted ensemble of three members of one architecture, and what the build said."""
    folder = tmp_path_factory.mktemp("alike")
    write_code(folder)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        save_file(Net().state_dict(), folder / f"{seed}.safetensors")
        members.append(
            {"name": f"m{seed}", "architecture": "net.py:Net", "weights": f"{seed}.safetensors"}
        )
    spec = write_ensemble(folder, members, runtime={"compile": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_MIN_SPEED_UP", 0.001)
        return build_and_extract(spec)


def one_by_one(runtime: Runtime) -> Runtime:
    """The same members, none of which runs together with others."""
    alone = copy.copy(runtime)
    alone._executables = Executables(runtime._executables.single)
    return alone


def runtime_of(folder: Path) -> Runtime:
    spec = load_spec(folder / "ensemble.yaml")
    return Runtime.load(spec, folder, CPU, ThreadPool(2), compiled=True)


@needs_compiler
def test_members_of_one_architecture_are_compiled_as_one(
    alike: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, said = alike
    assert len(said) == 1
    assert said[0].startswith("members m0 to m2 (3 of one architecture) compiled as one")
    with caplog.at_level(logging.INFO):
        runtime = runtime_of(folder)
    assert "m0, m1, m2: the compiled executable runs, in float32" in caplog.text
    images = example_images(11)
    for samples in (1, 4, 5, 11):
        together = runtime.run(images[:samples])
        alone = one_by_one(runtime).run(images[:samples])
        torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-6)
        assert together.scores.std(dim=0).min() > 1e-4, "each member has its own weights"


@needs_compiler
def test_compiled_fused_members_that_answer_otherwise_are_not_used(
    alike: tuple[Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(alike[0], tmp_path / "ensemble"))
    outputs = load_file(folder / OUTPUTS)
    save_file(outputs | {"m1": outputs["m1"].flip(1)}, folder / OUTPUTS)
    with caplog.at_level(logging.INFO):
        runtime = runtime_of(folder)
    assert (
        "m0, m1, m2: the compiled executable cannot be used (its answers differ by" in caplog.text
    )
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
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Three members, of which the first and the last have one backbone."""
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
        runtime={"compile": True, "precision": "float32"},
        preprocessing={"shared": {"resize": [64, 64]}},
    )
    with pytest.MonkeyPatch.context() as patch:
        # Each alone is compiled whatever it gains, and no three are fused.
        patch.setattr(trial, "_MIN_SPEED_UP", 0.001)
        patch.setattr(fused, "_MAX_PARAMETERS_TO_FUSE", 1)
        return build_and_extract(spec)


@needs_compiler
def test_members_that_share_a_backbone_run_as_one(
    heads: tuple[Path, list[str]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, said = heads
    assert said[-1].startswith(
        "members first and last share a backbone, compiled as one in float32: their scores differ "
    )
    monkeypatch.setattr(fused, "_MAX_PARAMETERS_TO_FUSE", 1)
    pool = ThreadPool(2)
    with caplog.at_level(logging.INFO):
        spec = load_spec(folder / "ensemble.yaml")
        runtime = Runtime.load(spec, folder, CPU, pool, compiled=True)
    assert "first, last: the compiled executable runs, in float32" in caplog.text
    assert [each.members for each in runtime._executables.joint] == [(0, 2)]
    together = runtime.run(example_images(12))
    alone = one_by_one(runtime).run(example_images(12))
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-5, atol=1e-5)

    # One of the two alone for some samples: each then runs by itself.
    asked = torch.ones((3, 12), dtype=torch.bool)
    asked[2, :6] = False
    part = runtime.run(example_images(12), asked=asked)
    assert bool((part.states == asked).all())
    torch.testing.assert_close(part.scores[asked], alone.scores[asked], rtol=1e-5, atol=1e-5)


@needs_compiler
def test_the_backbone_is_computed_once(heads: tuple[Path, list[str]]) -> None:
    record = CompiledRecord.from_json((heads[0] / RECORD).read_text())
    (shared,) = [each for each in record.executables if len(each.members) > 1]
    code = f"""
import torch
from pathlib import Path
from torchserve_ensemble.handlers.members.aot_library import AotLibrary
library = AotLibrary(Path({str(heads[0] / shared.files[0])!r}), (3, 64, 64), 4)
print(library(torch.rand(2, 3, 64, 64)).shape)
"""
    printed = printed_by(code, ONEDNN_VERBOSE="1")
    assert printed[-1] == "torch.Size([2, 2, 3])"
    assert sum(",exec,cpu,convolution," in line for line in printed) == 3


def test_only_members_of_one_preprocessing_share() -> None:
    modules = [net(), net(), net()]
    spec = SimpleNamespace(members=["a", "b", "c"], output_of=lambda member: "logits")
    loaded = [LoadedMember("m", module, module) for module in modules]
    assert sharing(spec, loaded, [0, 0, 0]) == [(0, 1, 2)]  # type: ignore[arg-type]
    assert sharing(spec, loaded, [0, 1, 0]) == [(0, 2)]  # type: ignore[arg-type]
    for value in modules[1].parameters():
        value.data += 1
    assert sharing(spec, loaded, [0, 0, 0]) == [(0, 2)]  # type: ignore[arg-type]


@needs_compiler
def test_own_code_after_the_network_stays_outside_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "_MIN_SPEED_UP", 0.001)
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
    spec = write_ensemble(tmp_path, members, runtime={"compile": True}, extra_files=["net.py"])
    folder, reported = build_and_extract(spec)
    assert "member 'dict' is not compiled: its forward gives dict, not one tensor" in reported
    with caplog.at_level(logging.INFO):
        found = run(folder)
    assert "one: the compiled executable runs" in caplog.text
    one, two, plain = found.scores
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one, plain.flip(1), rtol=1e-5, atol=1e-5)
