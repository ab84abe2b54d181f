"""The verb `diff`: exit statuses, text, JSON and the page, also with hostile names."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_pairs import build
from PIL import Image
from probe_ensemble import image
from safetensors.torch import save_file

from torchserve_ensemble.cli import main
from torchserve_ensemble.tuning import difference_page
from torchserve_ensemble.tuning.thumbnails import thumbnail

HOSTILE = "<img src=x onerror=alert(1)> & 'dark\"\x1b[2J"


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def second_version(spec: dict[str, Any], folder: Path) -> None:
    spec["version"] = "2.0"
    save_file({"bound": torch.tensor(0.69)}, folder / "b.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives whose members answer "bright" from another brightness on, and images."""
    folder = tmp_path_factory.mktemp("diff")
    options: dict[str, Any] = {"task": "presence", "policies": {"default": "majority"}}
    build(folder / "a", **options)
    build(folder / "b", second_version, **options)
    for number in range(20):
        label = "bright" if number >= 12 else "dark"
        path = folder / "images" / label / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number / 20))
    return folder


@pytest.fixture
def pair(folder: Path) -> list[str]:
    return [
        str(folder / "a" / "store" / "probes-1.0.mar"),
        str(folder / "b" / "store" / "probes-2.0.mar"),
    ]


def test_equal_archives(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", pair[0], pair[0]]) == 0
    assert "equal, byte for byte" in capsys.readouterr().out


def test_text_with_labelled_data(
    folder: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *pair, "--data", str(folder / "images")]) == 1
    printed = capsys.readouterr().out
    images = folder / "images"
    assert '  version: "1.0" -> "2.0"\n' in printed
    assert "bound: float32 [], largest change 0.19 of values up to 0.5, 1 of 1 elements" in printed
    # Majority of three: the middle bound decides, 0.5 and then 0.69.
    assert "4 of 20 decisions change" in printed
    assert "accuracy 0.9000 (18 right) -> 0.9000 (18 right)" in printed
    assert "2 changes correct a decision, 2 break one" in printed
    assert "does not show that either is right more often (p = 1, McNemar's exact" in printed
    assert "bright -> dark: 4" in printed
    assert f"{images}/dark/10.png: score " in printed
    assert "(corrected, shows dark)" in printed


def test_json_with_data_without_labels(
    folder: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["diff", *pair, "--data", str(folder / "images"), "--unlabelled", "--json"]
    assert main(arguments) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["settings"] == [{"place": "version", "before": "1.0", "after": "2.0"}]
    assert content["weights"][0]["tensors"][0]["name"] == "bound"
    decisions = content["decisions"]
    assert (decisions["images"], decisions["changed"], decisions["mcnemar"]) == (20, 4, None)
    assert decisions["directions"] == [
        {"before": "bright", "after": "dark", "images": 4, "corrected": None, "broken": None}
    ]
    names = [Path(each["image"]).name for each in decisions["samples"]]
    assert sorted(names) == ["10.png", "11.png", "12.png", "13.png"]


def test_the_policy_of_both(
    folder: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(folder / "images"), "--policy", "any"]
    assert main(["diff", *pair, *arguments]) == 1
    assert "0 of 20 decisions change" in capsys.readouterr().out


def test_the_page_is_whole_and_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hostile(spec: dict[str, Any], folder: Path) -> None:
        spec["labels"] = [HOSTILE, "bright"]
        spec["description"] = HOSTILE

    def hostile_second(spec: dict[str, Any], folder: Path) -> None:
        hostile(spec, folder)
        second_version(spec, folder)
        spec["provenance"] = {"owner": HOSTILE}
        (folder / "probe.py").write_text((folder / "probe.py").read_text() + f"# {HOSTILE!r}\n")

    one = build(tmp_path / "a", hostile, task="presence", policies={"default": "majority"})
    other = build(tmp_path / "b", hostile_second, task="presence", policies={"default": "majority"})
    images = tmp_path / "images"
    images.mkdir()
    name = "<script>alert(1)<!--'\"&.png"
    (images / name).write_bytes(image(0.6))
    (images / "broken.png").write_bytes(b"no image")
    page = tmp_path / "page.html"
    pair = [str(one), str(other)]
    assert main(["diff", *pair, "--data", str(images), "--html", str(page)]) == 1
    assert "\x1b" not in capsys.readouterr().out
    text = page.read_text()
    parsed = Page(text)
    kinds = {tag for tag, _ in parsed.elements}
    assert "script" not in kinds
    assert not any(
        name.startswith("on") for _, attributes in parsed.elements for name in attributes
    )
    sources = [attributes.get("src") for tag, attributes in parsed.elements if tag == "img"]
    assert len(sources) == 1
    assert all(source is not None and source.startswith("data:image/jpeg;") for source in sources)
    assert not re.search(r"""(?:src|href)=['"]?(?:https?:)?//""", text)
    assert "default-src 'none'" in text
    assert "left out" in text
    assert "onerror=alert(1)&gt;" in text


def test_pictures_are_bounded(
    folder: Path, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference_page, "_MAX_PICTURES", 3)
    page = tmp_path / "page.html"
    main(["diff", *pair, "--data", str(folder / "images"), "--html", str(page)])
    elements = Page(page.read_text()).elements
    assert [tag for tag, _ in elements].count("figure") == 4
    assert [tag for tag, _ in elements].count("img") == 3


def test_thumbnails_are_small_and_upright(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000), "red").save(path, exif=exif)
    uri = thumbnail(path)
    assert uri is not None
    data = base64.b64decode(uri.partition("base64,")[2])
    assert Image.open(io.BytesIO(data)).size == (80, 160)
    assert len(data) < 2000


def test_what_is_no_picture_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    for name in ("text.png", "drawing.png", "large.png", "missing.png"):
        assert thumbnail(tmp_path / name) is None


def test_trouble_has_its_own_status(
    folder: Path, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.mar"
    damaged.write_bytes(Path(pair[0]).read_bytes()[:-9])
    (tmp_path / "empty").mkdir()
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    (tmp_path / "cats" / "cat" / "1.png").write_bytes(image(0.5))
    (tmp_path / "bundles").mkdir()
    with zipfile.ZipFile(tmp_path / "bundles" / "two.zip", "w") as bundle:
        bundle.writestr("1.png", image(0.1))
        bundle.writestr("2.png", image(0.2))
    for arguments, message in [
        ([pair[0], str(damaged)], "damaged.mar: it does not end as a model archive does"),
        ([pair[0], "missing.mar"], "missing.mar: no such archive"),
        ([*pair, "--data", "missing"], "missing: no such folder or file"),
        ([*pair, "--data", str(tmp_path / "empty")], "empty: no labelled image"),
        ([*pair, "--data", str(tmp_path / "cats")], "--unlabelled takes the images without labels"),
        ([*pair, "--data", str(tmp_path / "bundles")], "2 predictions for 1 files: leave out"),
        ([*pair, "--data", str(folder / "images"), "--policy", "anny"], "anny"),
        ([*pair, "--policy", "any"], "--policy says how to compare decisions: name images with"),
        ([*pair, "--tolerance", "-1"], "--tolerance -1.0: must be a number from 0 on"),
        ([*pair, "--html", str(tmp_path / "no" / "x.html")], "x.html: cannot be written: No such"),
    ]:
        assert main(["diff", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("ts-ensemble: ")
        assert error.count("\n") == 1
        assert message in error
