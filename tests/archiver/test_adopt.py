"""Archives of stock TorchServe become a spec; dangerous ones are refused; no code runs."""

from __future__ import annotations

import re
import shlex
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from member_files import Planted
from stock_archives import LABELS, archive, rewritten, with_entries, write_labels
from torch import nn

from torchserve_ensemble.archiver.adopt import adopt
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ArchiveError, SpecError
from torchserve_ensemble.handlers.spec import load_spec

CODE = """
from torch import nn

{imports}


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 6)

    def forward(self, batch):
        return self.head(batch.mean(dim=(2, 3)))
"""


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 6)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(batch.mean(dim=(2, 3)))
        return logits


def weights(folder: Path, seed: int = 0) -> Path:
    """Write a state dict of `Tiny`."""
    torch.manual_seed(seed)
    path = folder / "tiny.pth"
    torch.save(Tiny().state_dict(), path)
    return path


def eager(
    folder: Path, name: str = "a", *, imports: str = "", labels: bool = True, **files: str
) -> Path:
    """Write an archive of an eager model.

    Args:
        folder: the folder for the archive.
        name: name of the model.
        imports: lines at the beginning of the model file.
        labels: whether the archive has a file of labels.
        files: name of each further Python module -> its code.
    """
    source = folder / f"source-{name}"
    source.mkdir()
    (source / "model.py").write_text(CODE.format(imports=imports))
    extra = [write_labels(source)] if labels else []
    for module, content in files.items():
        (source / f"{module}.py").write_text(content)
        extra.append(source / f"{module}.py")
    return archive(
        folder,
        name,
        weights(source, sum(name.encode())),
        model_file=source / "model.py",
        extra_files=tuple(extra),
    )


def scripted(folder: Path, name: str = "s") -> Path:
    """Write an archive of a TorchScript model."""
    path = folder / "scripted.pt"
    torch.jit.script(Tiny().eval()).save(path)
    return archive(folder, name, path, extra_files=(write_labels(folder),))


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    """Describe an entry of a zip file with a name and a file mode."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def refusal(folder: Path, *archives: Path, **options: Path) -> str:
    """Check that archives are refused and leave no files behind, and return the message."""
    before = set(folder.iterdir())
    with pytest.raises(ArchiveError) as caught:
        adopt(archives, folder / "out", name="both", **options)
    assert set(folder.iterdir()) == before
    return str(caught.value)


def test_eager_and_scripted_models_become_a_spec_that_builds(tmp_path: Path) -> None:
    adoption = adopt([eager(tmp_path), scripted(tmp_path)], tmp_path / "out", name="both")
    spec = load_spec(adoption.spec)
    assert spec.labels == LABELS
    assert [member.name for member in spec.members] == ["a", "s"]
    assert [member.architecture for member in spec.members] == ["model.py:Tiny", None]
    preprocessing = spec.preprocessing_of(spec.members[0])
    assert (preprocessing.resize, preprocessing.crop) == (256, 224)
    assert any("Whether the networks were trained with it" in each for each in adoption.notes)
    assert build_archive(adoption.spec, tmp_path / "store").is_file()


def test_adopt_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options may stand among the archives; the folder is named after the ensemble."""
    first, second = eager(tmp_path, "a"), eager(tmp_path, "b")
    monkeypatch.chdir(tmp_path)
    assert main(["adopt", str(first), "--name", "both", str(second), "--version", "2.0"]) == 0
    spec = load_spec(tmp_path / "both" / "ensemble.yaml")
    assert (spec.name, spec.version, len(spec.members)) == ("both", "2.0", 2)
    printed = capsys.readouterr().out
    assert "a: state dict for model.py:Tiny; 6 labels" in printed
    assert "What the archives do not say" in printed
    assert main(["adopt", str(first), "--name", "both"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_the_commands_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager(tmp_path, "a")
    eager(tmp_path, "b")
    page = (Path(__file__).parents[2] / "docs" / "from-one-model.md").read_text()
    commands = re.findall(r"^```sh\nts-ensemble (.*)\n```", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["adopt", "build"]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert (tmp_path / "model_store" / "both-1.0.mar").is_file()


def test_code_is_copied_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = eager(tmp_path, imports=f"open({str(trace)!r}, 'w').close()")
    adoption = adopt([path], tmp_path / "out", name="both")
    assert not trace.exists()
    load_spec(adoption.spec)
    assert "open(" in (tmp_path / "out" / "model.py").read_text()


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    (tmp_path / "model.py").write_text(CODE.format(imports=""))
    torch.save({"head.weight": Planted(trace)}, tmp_path / "bad.pth")
    path = archive(tmp_path, "a", tmp_path / "bad.pth", model_file=tmp_path / "model.py")
    message = refusal(tmp_path, path, labels=write_labels(tmp_path))
    assert "holds more than tensors" in message
    assert not trace.exists()


def test_modules_are_copied_and_model_files_of_one_name_get_different_names(tmp_path: Path) -> None:
    first = eager(tmp_path, "a", imports="import helper", helper="WIDTH = 3\n")
    second = eager(tmp_path, "b", imports="import helper  # b", helper="WIDTH = 3\n")
    adoption = adopt([first, second], tmp_path / "out", name="both")
    spec = load_spec(adoption.spec)
    assert [m.architecture for m in spec.members] == ["model.py:Tiny", "b_model.py:Tiny"]
    assert spec.extra_files == ("helper.py",)
    build_archive(adoption.spec, tmp_path / "store")


def test_different_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    first = eager(tmp_path, "a", imports="import helper", helper="WIDTH = 3\n")
    second = eager(tmp_path, "b", imports="import helper", helper="WIDTH = 4\n")
    assert "different files helper.py" in refusal(tmp_path, first, second)


def test_labels_come_from_another_archive_or_a_file_and_must_agree(tmp_path: Path) -> None:
    with_labels, without_labels = eager(tmp_path, "a"), eager(tmp_path, "b", labels=False)
    adoption = adopt([with_labels, without_labels], tmp_path / "one", name="both")
    assert any("b.mar has no index_to_name.json" in each for each in adoption.notes)
    assert "give it as --labels FILE" in refusal(tmp_path, without_labels)
    adopt([without_labels], tmp_path / "two", name="both", labels=write_labels(tmp_path))
    assert load_spec(tmp_path / "two" / "ensemble.yaml").labels == LABELS
    others = tmp_path / "others"
    others.mkdir()
    swapped = dict(zip("012345", ("ash", "elm", "oak", *LABELS[3:]), strict=True))
    message = refusal(tmp_path, with_labels, labels=write_labels(others, swapped))
    assert "output 1 is 'elm'" in message
    labels_file = write_labels(others, {"0": "ash", "1": "oak"})
    assert "has 2 labels and" in refusal(tmp_path, with_labels, labels=labels_file)
    labels_file.write_text("{")
    assert "is not JSON" in refusal(tmp_path, with_labels, labels=labels_file)


def test_notes_name_compiled_networks_and_unused_files(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CODE.format(imports=""))
    (tmp_path / "notes.txt").write_text("notes")
    for name, pt2, compiled in (
        ("a", {"compile": {"enable": True, "backend": "inductor"}}, True),
        ("b", {"compile": {"enable": False}}, False),
        ("c", "inductor", True),
    ):
        path = archive(
            tmp_path,
            name,
            weights(tmp_path),
            model_file=tmp_path / "model.py",
            extra_files=(write_labels(tmp_path), tmp_path / "notes.txt"),
            config={"minWorkers": 1, "pt2": pt2},
        )
        adoption = adopt([path], tmp_path / f"out-{name}", name="both")
        assert any("compiled by torch.compile" in each for each in adoption.notes) is compiled
        assert any("notes.txt" in each for each in adoption.notes)


def test_versions_of_one_model_get_names_with_their_version(tmp_path: Path) -> None:
    first = eager(tmp_path)
    second = rewritten(first, tmp_path / "next.mar", modelVersion="2.0")
    adoption = adopt([first, second], tmp_path / "two", name="both")
    assert [m.name for m in load_spec(adoption.spec).members] == ["a-1.0", "a-2.0"]
    assert "an ensemble has each model once" in refusal(tmp_path, first, first)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"handler": "handler.py"}, "its handler is 'handler.py', and only TorchServe's own"),
        ({"handler": None}, "its handler is 'None'"),
        ({"modelName": "../../a"}, "pack it again with another --model-name"),
        ({"modelName": 3}, "is not one that torch-model-archiver writes"),
        ({"serializedFile": "none.pth"}, "names the serializedFile 'none.pth', which is missing"),
        ({"serializedFile": None}, "it has no weights"),
        ({"modelFile": None}, "serves TorchScript in a .pt file alone"),
        ({"modelFile": "tiny.pth"}, "no Python file at the root"),
        ({"modelFile": "helper.py"}, "helper.py defines no class"),
        ({"modelFile": "two.py"}, "two.py defines the classes A, B; TorchServe serves"),
        ({"modelFile": "broken.py"}, "broken.py is not Python"),
    ],
)
def test_archives_that_torchserve_could_not_serve_are_refused(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    path = eager(tmp_path, helper="X = 1\n", two="class A: ...\nclass B: ...\n", broken="class :\n")
    assert problem in refusal(tmp_path, rewritten(path, tmp_path / "bad.mar", **changes))


def test_a_state_dict_is_no_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(Tiny().state_dict(), path)
    stock = archive(tmp_path, "a", path, extra_files=(write_labels(tmp_path),))
    assert "state.pt is no TorchScript archive" in refusal(tmp_path, stock)


@pytest.mark.parametrize(
    ("name", "mode", "problem"),
    [
        ("../evil.py", stat.S_IFREG, "the name '../evil.py' is not allowed"),
        ("/etc/evil.py", stat.S_IFREG, "the name '/etc/evil.py' is not allowed"),
        ("a\\b.py", stat.S_IFREG, "is not allowed"),
        ("../evil.pyc", stat.S_IFREG, "the name '../evil.pyc' is not allowed"),
        ("evil\n.txt", stat.S_IFREG, "is not allowed"),
        ("link.py", stat.S_IFLNK, "link.py is a link or no regular file"),
        ("pipe.py", stat.S_IFIFO, "pipe.py is a link or no regular file"),
        ("MODEL.py", stat.S_IFREG, "are one name to some file systems"),
        ("model.py", stat.S_IFREG, "model.py is in it 2 times"),
    ],
)
def test_hostile_names_and_links_are_refused(
    tmp_path: Path, name: str, mode: int, problem: str
) -> None:
    path = eager(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice.
        bad = with_entries(path, tmp_path / "bad.mar", (entry(name, mode | 0o644), b"x = 1"))
    assert problem in refusal(tmp_path, bad)


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    bomb = entry("zeros.bin")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    bad = with_entries(eager(tmp_path), tmp_path / "bad.mar", (bomb, bytes(100 * 1024**2)))
    assert bad.stat().st_size < 10**6
    assert "weights hardly compress" in refusal(tmp_path, bad)


def test_a_file_that_is_larger_than_the_archive_claims_is_refused(tmp_path: Path) -> None:
    """The archive's directory claims 10 bytes for a file that has many more."""
    bad = tmp_path / "bad.mar"
    content = eager(tmp_path).read_bytes()
    # An entry of the directory has the unpacked size at byte 24 and the name at byte 46.
    start = content.index(b"PK\x01\x02")
    while content[start + 46 : start + 54] != b"model.py":
        start = content.index(b"PK\x01\x02", start + 4)
    bad.write_bytes(content[: start + 24] + (10).to_bytes(4, "little") + content[start + 28 :])
    assert "it cannot be read as a model archive" in refusal(tmp_path, bad)


def test_damaged_compressed_weights_are_refused(tmp_path: Path) -> None:
    """zlib cannot decompress them, which zipfile does not report as an error of its own."""
    path = scripted(tmp_path)
    bad = tmp_path / "bad.mar"
    with zipfile.ZipFile(path) as original, zipfile.ZipFile(bad, "w") as copy:
        for name in original.namelist():
            copy.writestr(name, original.read(name), zipfile.ZIP_DEFLATED)
        weights_offset = copy.getinfo("scripted.pt").header_offset
    content = bytearray(bad.read_bytes())
    # The local header has 30 bytes, and the name follows it.
    first_byte = weights_offset + 30 + len("scripted.pt")
    content[first_byte : first_byte + 100] = b"\xff" * 100
    bad.write_bytes(content)
    assert "it cannot be read as a model archive" in refusal(tmp_path, bad)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip" * 100, b"PK\x05\x06" + bytes(18)])
def test_files_that_are_no_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mar").write_bytes(content)
    assert "bad.mar: " in refusal(tmp_path, tmp_path / "bad.mar")
    assert "no such archive" in refusal(tmp_path, tmp_path / "none.mar")


def test_a_name_that_no_spec_can_have_is_refused(tmp_path: Path) -> None:
    path = eager(tmp_path)
    with pytest.raises(SpecError, match="name: "):
        adopt([path], tmp_path / "out", name="a b")
    assert not (tmp_path / "out").exists()
