"""Labels in TorchServe's index_to_name.json: read strictly, and written out in the archive."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from member_files import net, write_code, write_ensemble

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.labels_in_spec import text_with_labels
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.archive_layout import SPEC
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.spec import json_schema, load_spec, parse_spec

FILE = "index_to_name.json"
TEXT = """\
# An ensemble.
name: trees
version: "1.0"
task: classification
labels: index_to_name.json  # TorchServe's own
preprocessing:
  small: {resize: [4, 4]}
members:
  - {name: first, architecture: net.py:Net, weights: w.pth}
"""


def labels(folder: Path, content: object) -> tuple[str, ...]:
    """Write a file of labels, and return the labels of a spec that names it."""
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return parse_spec(TEXT, labels_folder=folder).labels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"0": "ash", "1": "oak"}, ("ash", "oak")),
        ({"1": "oak", "0": "ash"}, ("ash", "oak")),
        ({"0": ["n1", "ash"], "1": ["n2", "oak"]}, ("ash", "oak")),
        ({"0": ["n1", "ash"], "1": ["n2", "ash"]}, ("ash (n1)", "ash (n2)")),
        ({"object_type_names": ["ash", "oak"]}, ("ash", "oak")),
        ({"0": "Bäume 🌳", "1": 'a "b"'}, ("Bäume 🌳", 'a "b"')),
    ],
)
def test_torchserves_formats_are_read(
    tmp_path: Path, content: object, expected: tuple[str, ...]
) -> None:
    assert labels(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", f"{FILE} is not JSON"),
        ("[" * 100_000, f"{FILE} is not JSON"),
        ("[]", 'must be an object of numbers to names, like {"0": "cat"}'),
        ("{}", "must be an object of numbers to names"),
        ({"0": "ash", "2": "oak"}, 'has 2 entries, but none with the key "1"'),
        ('{"0": "ash", "0": "oak"}', 'the key "0" is given twice'),
        ({"0": "ash", "1": 3}, f'{FILE}, key "1": must be a name, or a list'),
        ({"0": "ash", "1": []}, f'{FILE}, key "1": must be a name, or a list'),
        ({"0": "ash", "1": "o\nak"}, f'{FILE}, key "1": must be a name, or a list'),
        ({"0": "ash", "1": ""}, f'{FILE}, key "1": the name is empty'),
        ({"0": "ash", "1": "ash"}, "labels must differ; given twice: ['ash']"),
        (" " * 1_000_001, f"{FILE} has more than 1000000 bytes"),
    ],
)
def test_mistakes_are_named_with_line_key_and_place(
    tmp_path: Path, content: object, problem: str
) -> None:
    with pytest.raises(SpecError) as caught:
        labels(tmp_path, content)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("spec:5: labels: ")
    assert problem in line


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../index_to_name.json", "must lie in the spec's folder"),
        ("/etc/passwd", "must lie in the spec's folder"),
        ("index_to_nam.json", "did you mean 'index_to_name.json'?"),
        ("link.json", "outside the spec's folder"),
    ],
)
def test_the_file_lies_beside_the_spec(tmp_path: Path, name: str, problem: str) -> None:
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (folder / FILE).write_text("{}")
    (tmp_path / "outside.json").write_text('{"0": "ash", "1": "oak"}')
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(SpecError, match="spec:5: labels: ") as caught:
        parse_spec(TEXT.replace(FILE, name), labels_folder=folder)
    assert problem in str(caught.value)


def test_without_a_folder_labels_cannot_be_a_file() -> None:
    with pytest.raises(SpecError, match="can be read only beside the spec"):
        parse_spec(TEXT)


def test_an_archive_lists_the_labels_itself(tmp_path: Path) -> None:
    """The archive is the one that a spec with a list of labels gives, but for the spec's text."""
    write_code(tmp_path)
    torch.save(net().state_dict(), tmp_path / "w.pth")
    (tmp_path / FILE).write_text('{"0": "ash", "1": "oak", "2": "elm"}')
    (tmp_path / "ensemble.yaml").write_text(TEXT)
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store")
    verify_archive(archive)
    with zipfile.ZipFile(archive) as opened:
        text = opened.read(SPEC).decode()
        assert not any(FILE in name for name in opened.namelist())
    assert text == TEXT.replace(f"labels: {FILE}", 'labels: ["ash", "oak", "elm"]')
    assert parse_spec(text) == load_spec(tmp_path / "ensemble.yaml")


@pytest.mark.parametrize("written", [FILE, f"'{FILE}'", f"&file {FILE}", f'!!str "{FILE}"'])
def test_every_way_to_write_the_name_is_replaced(tmp_path: Path, written: str) -> None:
    (tmp_path / FILE).write_text('{"0": "ash", "1": "oak"}')
    path = tmp_path / "ensemble.yaml"
    path.write_text(TEXT.replace(f" {FILE} ", f" {written} "))
    spec = load_spec(path, check_files=False)
    assert parse_spec(text_with_labels(path, spec).decode()) == spec


def test_an_alias_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"0": "ash", "1": "oak"}')
    path = tmp_path / "ensemble.yaml"
    aliased = TEXT.replace("# An ensemble.", f"description: &file {FILE}")
    path.write_text(aliased.replace(f"labels: {FILE}", "labels: *file"))
    spec = load_spec(path, check_files=False)
    with pytest.raises(SpecError, match="without anchor, alias or merge"):
        text_with_labels(path, spec)


def test_a_list_is_kept_byte_for_byte(tmp_path: Path) -> None:
    path = write_ensemble(
        tmp_path, [{"name": "a", "architecture": "net.py:Net", "weights": "w.pth"}]
    )
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert text_with_labels(path, load_spec(path, check_files=False)) == path.read_bytes()


def test_the_schema_takes_a_list_or_a_file() -> None:
    document = yaml.safe_load(TEXT)
    jsonschema.validate(document, json_schema())
    jsonschema.validate(document | {"labels": ["ash", "oak"]}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"labels": []}, json_schema())
