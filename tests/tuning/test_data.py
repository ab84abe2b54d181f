"""Labelled data as people have it, and images that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from probe_ensemble import image, probes

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec
from torchserve_ensemble.tuning.labelled_data import read_labelled
from torchserve_ensemble.tuning.member_outputs import member_outputs


def spec_of(folder: Path, task: str) -> EnsembleSpec:
    probes(folder, task=task)
    return load_spec(folder / "ensemble.yaml")


def table(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name, level in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        (folder / "images" / f"{name}.png").write_bytes(image(level))
    (folder / "data.csv").write_text(text, encoding=encoding)
    return folder / "data.csv"


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "presence")
    for name in ("dark/2.png", "dark/1.PNG", "bright/deep/3.png", "dark/notes.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(image(0.5))
    for name in (".git/x.png", "dark/._1.png", "dark/.cache/y.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"no image")
    data = read_labelled(tmp_path / "data", spec)
    assert [path.name for path in data.paths] == ["3.png", "1.PNG", "2.png"]
    assert data.targets.tolist() == [[True], [False], [False]]


def test_several_labels(tmp_path: Path) -> None:
    source = table(tmp_path, "file,label\nimages/a.png,bright; dark\nimages/b.png,\n")
    data = read_labelled(source, spec_of(tmp_path, "multilabel"))
    assert data.targets.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("column", ["brightness", "label"])
def test_numbers(tmp_path: Path, column: str) -> None:
    source = table(tmp_path, f"file,{column}\nimages/a.png,0.125\nimages/b.png,-2\n")
    data = read_labelled(source, spec_of(tmp_path, "regression"))
    assert data.targets.tolist() == [[0.125], [-2.0]]
    assert data.targets.dtype is torch.float32


def test_a_spreadsheets_byte_order_mark(tmp_path: Path) -> None:
    source = table(tmp_path, "file,label\nimages/a.png,dark\n", encoding="utf-8-sig")
    assert len(read_labelled(source, spec_of(tmp_path, "presence")).paths) == 1


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("presence", "file,label\n\nimages/a.png,dakr", "line 3: 'dakr' is no label"),
        ("presence", "file,label\n\nimages/a.png,dakr", "did you mean 'dark'?"),
        ("presence", "file,label\n,dark", "line 2: column 'file' is empty"),
        ("presence", "file,label\nimages/none.png,dark", "line 2: "),
        ("presence", "label,file\ndark", "line 2: column 'file' is empty"),
        ("regression", "file,label\nimages/a.png,nan", "line 2: [nan] must be finite"),
        ("regression", "file,label\nimages/a.png,bright", "write a number in each column"),
        ("regression", "file,colour\nimages/a.png,1", "column 'brightness' is missing"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, task: str, text: str, words: str) -> None:
    source = table(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_labelled(source, spec_of(tmp_path, task))
    assert words in caught.value.message
    assert str(source) in caught.value.message


def test_the_digest_tells_names_labels_and_bytes_apart(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "presence")

    def digest(text: str) -> str:
        return read_labelled(table(tmp_path, text), spec).digest

    first = digest("file,label\nimages/a.png,dark\n")
    assert digest("file,label\nimages/a.png,dark\n") == first
    (tmp_path / "again.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    others = {
        digest("file,label\nimages/a.png,bright\n"),
        digest("file,label\nimages/b.png,dark\n"),
        digest("file,label\nagain.png,dark\n"),
    }
    assert len(others | {first}) == 4


def test_every_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "presence")
    source = table(tmp_path, "file,label\n" + "".join(f"images/{n}.png,dark\n" for n in "abc"))
    data = read_labelled(source, spec)
    for name in "ac":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(SpecError) as caught:
        member_outputs(spec, tmp_path, data)
    assert "a.png" in caught.value.message
    assert "c.png" in caught.value.message
    assert "b.png" not in caught.value.message


def test_outputs_are_the_members_own_in_the_order_of_the_data(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "presence")
    source = table(tmp_path, "file,label\nimages/c.png,bright\nimages/a.png,dark\n")
    seen: list[int] = []
    results = member_outputs(spec, tmp_path, read_labelled(source, spec), on_image=seen.append)
    assert seen == [2, 2]
    levels = torch.tensor([round(255 * 0.9) / 255, round(255 * 0.1) / 255])
    expected = 10 * (levels - torch.tensor([[0.25], [0.5], [0.75]]))
    assert torch.allclose(results.logits[:, :, 0], expected, atol=1e-4)
    assert torch.allclose(results.scores, results.logits.sigmoid())


def test_members_see_images_as_in_the_worker(tmp_path: Path) -> None:
    """Also where the preprocessing has a window for 16-bit images."""
    probes(
        tmp_path,
        preprocessing={"small": {"resize": [2, 2], "window": {"center": 500, "width": 1000}}},
    )
    spec = load_spec(tmp_path / "ensemble.yaml")
    for label, value in (("dark", 100), ("bright", 900)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(folder / "a.png")
    found = member_outputs(spec, tmp_path, read_labelled(tmp_path / "data", spec))
    bright = spec.labels.index("bright")
    is_bright = found.scores.mean(dim=0)[:, bright] > 0.5
    assert torch.equal(is_bright, found.targets[:, bright].bool())


def test_images_that_belong_together(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "presence")
    rows = "images/a.png,dark,first\nimages/b.png,bright,second\nimages/c.png,dark,first\n"
    grouped = read_labelled(table(tmp_path, f"file,label,group\n{rows}"), spec)
    assert grouped.groups is not None
    assert grouped.groups.tolist() == [0, 1, 0]
    outputs = member_outputs(spec, tmp_path, grouped)
    assert outputs.groups is grouped.groups
    other = read_labelled(table(tmp_path, f"file,label,group\n{rows}".replace("first", "1")), spec)
    assert other.digest != grouped.digest
    alone = "images/a.png,dark,first\nimages/b.png,bright,second\n"
    assert read_labelled(table(tmp_path, f"file,label,group\n{alone}"), spec).groups is None
    with pytest.raises(SpecError, match="line 2: column 'group' is empty"):
        read_labelled(table(tmp_path, "file,label,group\nimages/a.png,dark,\n"), spec)
