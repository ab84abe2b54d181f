"""Tests that every path, test, link and heading that a document names exists."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
)

_ROOMS = (
    "archiver",
    "benchmarks",
    "deploy",
    "docs",
    "examples",
    "handlers",
    "operations",
    "registry",
    "scripts",
    "serving",
    "tests",
    "torchserve_ensemble",
    "tuning",
)
# A path must not begin in the middle of an address, of another path (`../docs/`) or of a word.
_PATH = re.compile(rf"(?<![\w./:-])(?:{'|'.join(_ROOMS)})/[\w./-]*")
_TEST = re.compile(r"`(test_\w+)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_ADDRESS = re.compile(r"[a-z]+:")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_FENCED = re.compile(r"^```(\w*)\n.*?^```", re.DOTALL | re.MULTILINE)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def without_fenced_blocks(text: str, *languages: str) -> str:
    """Remove the fenced blocks from a text, all of them or only those of some languages."""
    return _FENCED.sub(lambda m: "" if not languages or m[1] in languages else m[0], text)


@cache
def anchors(document: str) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a document."""
    counted: Counter[str] = Counter()
    result = set()
    for heading in _HEADING.findall(without_fenced_blocks(text_of(document))):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        result.add(f"{anchor}-{counted[anchor]}" if counted[anchor] else anchor)
        counted[anchor] += 1
    return frozenset(result)


@cache
def names_of_tests() -> frozenset[str]:
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names.update(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
        names.add(path.stem)
    return frozenset(names)


def missing_paths(document: str) -> list[str]:
    # Blocks of `sh` may name files that they create. test_documentation.py runs these blocks.
    text = without_fenced_blocks(text_of(document), "sh")
    named = {match.rstrip(".") for match in _PATH.findall(text)}
    return sorted(path for path in named if not (ROOT / path).exists())


def broken_links(document: str) -> list[str]:
    broken = []
    for link in _LINK.findall(without_fenced_blocks(text_of(document))):
        if _ADDRESS.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / document).parent / file if file else ROOT / document
        if not target.exists():
            broken.append(link)
        elif anchor:
            path = target.resolve().relative_to(ROOT.resolve()).as_posix()
            if anchor not in anchors(path):
                broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    assert missing_paths(document) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_their_anchors_exist(document: str) -> None:
    assert broken_links(document) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_tests_exist(document: str) -> None:
    named = set(_TEST.findall(text_of(document)))
    assert named <= names_of_tests(), sorted(named - names_of_tests())


def test_the_site_has_every_page() -> None:
    in_navigation = re.findall(r": (\S+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    pages = [document.removeprefix("docs/") for document in DOCUMENTS if "docs/" in document]
    assert sorted(in_navigation) == sorted(pages)


def test_every_document_is_reached_from_the_readme() -> None:
    reached, waiting = set(), ["README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached:
            continue
        reached.add(document)
        for link in _LINK.findall(without_fenced_blocks(text_of(document))):
            if _ADDRESS.match(link):
                continue
            target = ((ROOT / document).parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_relative_to(ROOT.resolve()):
                waiting.append(target.relative_to(ROOT.resolve()).as_posix())
    assert set(DOCUMENTS) <= reached
