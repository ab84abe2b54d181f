"""Hostile specs are refused with one short message, in bounded time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.policies.fitted import load_fitted
from torchserve_ensemble.handlers.spec import load_spec, parse_spec

SPEC = """\
name: digits
version: "1.0"
task: classification
labels: [zero, one]
preprocessing:
  small: {resize: [8, 8]}
members:
  - name: cnn
    architecture: members.py:CNN
    weights: cnn.safetensors
"""
_MAX_SECONDS = 5


def laughs(first: str, each: str) -> str:
    """Write nine levels of ten aliases each: a billion values if all aliases are replaced."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {each % ', '.join([f'*a{n - 1}'] * 10)}" for n in range(1, 10)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "list in itself": ("provenance: &a [*a]\n", "spec:11: .*'a' contains itself"),
    "map in itself": ("provenance: &a {metrics: {x: *a}}\n", "'a' contains itself"),
    "billion laughs": (laughs("[x]", "[%s]"), "more than 100000 values"),
    "merged laughs": (laughs("{x: 1}", "{<<: [%s]}"), "more than 100000 values"),
    "deep lists": ("description: " + "[" * 400_000, "more than 50 levels"),
    "deep maps": ("description: " + "{a: " * 200_000, "more than 50 levels"),
    "deep blocks": (
        "provenance:\n" + "".join(" " * n + "a:\n" for n in range(1, 1200)),
        "more than 50 levels",
    ),
    "long number": ("threshold: " + "9" * 900_000, "spec:11: .*number of more than 100"),
    "long hexadecimal": ("threshold: 0x" + "f" * 90_000, "number of more than 100"),
    "long sexagesimal": ("threshold: " + ":".join(["59"] * 40_000), "number of more than 100"),
    "no date": ("created: 2001-99-99\n", "cannot be read: month must be in 1..12"),
    "python object": ("x: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    "unknown keys": ("".join(f"key{n}: 1\n" for n in range(10_000)), "unknown key"),
    "too long": ("#" * 2_000_000, "more than 1000000 characters"),
    "not unicode": ("x: \x00", "not valid YAML"),
    "wrong labels": (
        "threshold: {" + ", ".join(f"label{n}: 0.5" for n in range(20_000)) + "}\n",
        "not a label that is scored",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spec_is_refused_soon_with_one_message(name: str) -> None:
    addition, expected = HOSTILE[name]
    started = time.process_time()
    text = SPEC.replace("classification", "multilabel") + addition
    with pytest.raises(SpecError, match=expected) as caught:
        parse_spec(text)
    assert time.process_time() - started < _MAX_SECONDS
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[zero, one]", f"[{', '.join(['zero'] * 30_000)}]"),
        ("[zero, one]", f"[{', '.join(['1'] * 30_000)}]"),
        ("  - name: cnn", f"  - {{}}\n{'  - 1' * 20_000}\n  - name: cnn"),
        ("task: classification", f"task: {'x' * 900_000}"),
    ],
    ids=["one label often", "numbers", "no members", "long word"],
)
def test_many_mistakes_are_reported_in_a_short_message(old: str, new: str) -> None:
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace(old, new))
    assert time.process_time() - started < _MAX_SECONDS
    assert len(str(caught.value)) < 20_000


def test_aliases_and_merged_keys_stay_useful() -> None:
    text = (
        SPEC.replace("small: {", "small: &small {") + "    preprocessing: {<<: *small, crop: 4}\n"
    )
    member = parse_spec(text).members[0]
    assert parse_spec(text).preprocessing_of(member).size == (4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a spec with all its files; beside it lies a folder with a secret."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    folder = tmp_path / "spec"
    folder.mkdir()
    for name in ("cnn.safetensors", "members.py"):
        (folder / name).touch()
    (folder / "ensemble.yaml").write_text(SPEC)
    return folder


def problem(folder: Path, addition: str = "") -> str:
    """Load the spec with further lines, and return the message of the refusal."""
    (folder / "ensemble.yaml").write_text(SPEC + addition)
    with pytest.raises(SpecError) as caught:
        load_spec(folder / "ensemble.yaml")
    return str(caught.value)


def test_a_link_that_leads_outside_is_refused(folder: Path) -> None:
    (folder / "key.txt").symlink_to(folder.parent / "secret" / "key.txt")
    message = problem(folder, "extra_files: [key.txt]\n")
    assert "extra_files[0]: key.txt is, or lies behind, a link to" in message
    assert "outside the spec's folder: copy the file there" in message


def test_a_linked_folder_that_leads_outside_is_refused(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent / "secret")
    assert "more/key.txt is, or lies behind" in problem(folder, "extra_files: [more/key.txt]\n")


@pytest.mark.parametrize("name", ["cnn.safetensors", "members.py"])
def test_weights_and_code_are_no_links_either(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/proc/self/environ")
    assert f"{name} is, or lies behind, a link" in problem(folder)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "blobs").mkdir()
    (folder / "cnn.safetensors").replace(folder / "blobs" / "1")
    (folder / "cnn.safetensors").symlink_to("blobs/1")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.symlink_to(folder)
    assert load_spec(elsewhere / "ensemble.yaml").files() == ("cnn.safetensors", "members.py")


def test_names_are_written_in_one_way(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").touch()
    files = "extra_files: [./members.py, notes//a.txt, ./notes/./a.txt]\n"
    (folder / "ensemble.yaml").write_text(SPEC + files)
    spec = load_spec(folder / "ensemble.yaml")
    assert spec.files() == ("cnn.safetensors", "members.py", "notes/a.txt")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("/etc/passwd", "must lie in the spec's folder"),
        ("../secret/key.txt", "must lie in the spec's folder"),
        ("a\\b", "must lie in the spec's folder"),
        ("ensemble.yaml", "a name that the archive itself needs"),
        ("./compiled/compiled.json", "a name that the archive itself needs"),
        ("__pycache__/members.cpython-311.pyc", "Python's byte code"),
        ("a:b", "a colon"),
        ("a\x07", "an invisible character"),
        ("a.", "ends with a dot"),
        ("a" * 256, "longer than 1000 bytes, or 255"),
    ],
)
def test_names_that_an_archive_cannot_contain_are_refused(
    folder: Path, file: str, reason: str
) -> None:
    written = '"' + file.replace("\\", "\\\\").replace("\x07", "\\a") + '"'
    assert reason in problem(folder, f"extra_files: [{written}]\n")


def test_names_that_differ_in_case_alone_are_refused(folder: Path) -> None:
    (folder / "Members.py").touch()
    assert "take the files Members.py and members.py for one" in problem(
        folder, "extra_files: [Members.py]\n"
    )


@pytest.mark.parametrize("header", ["[" * 100_000, "{}", '{"kind": [], "members": []}', "1" * 5000])
def test_hostile_headers_of_fitted_models_are_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "stack.safetensors"
    save_file({"intercept": torch.zeros(1)}, file, metadata={"fitted_model": header})
    with pytest.raises(SpecError, match="not a fitted model"):
        load_fitted(file)


def test_a_fitted_model_without_members_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "stack.safetensors"
    tensors = {"intercept": torch.zeros(1), "coefficients": torch.zeros(1, 2)}
    save_file(tensors, file, metadata={"fitted_model": '{"kind": "stacking", "members": []}'})
    with pytest.raises(SpecError, match="not a fitted model"):
        load_fitted(file)
