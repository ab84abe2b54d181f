"""The record of an archive: its digest, its text, and what is refused as a record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.archive.record import ArchiveRecord
from torchserve_ensemble.handlers.base.errors import ArchiveError

FILES = st.dictionaries(st.text(min_size=1, max_size=8), st.text("0123456789abcdef"), max_size=5)


@given(FILES, st.randoms())
def test_the_digest_is_that_of_the_contents(files: dict[str, str], random: object) -> None:
    pairs = list(files.items())
    random.shuffle(pairs)  # type: ignore[attr-defined]
    built_with = {"torch": "1"}
    first, second = ArchiveRecord(files, built_with), ArchiveRecord(dict(pairs), built_with)
    assert first.digest == second.digest
    assert ArchiveRecord.from_json(first.to_json(), source="x") == first
    assert ArchiveRecord(files | {"one more": "00"}, built_with).digest != first.digest
    assert ArchiveRecord(files, {"torch": "2"}).digest != first.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"files": 1}',
        '{"files": {}, "built_with": {}}',
        "[" * 100_000,
        "1" * 5000,
        '{"files": {"\\ud800": "00"}, "built_with": {}, "digest": ""}',
    ],
)
def test_damaged_records_are_refused(text: str) -> None:
    with pytest.raises(ArchiveError, match=r"a.mar: archive.json is damaged"):
        ArchiveRecord.from_json(text, source="a.mar")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"00"', '"11"'),
        ('"1"', '"2"'),
        ("{", '{ "more": 1,'),
        ('"files"', '"files": {}, "files"'),
        ("\n}", "\n} "),
        ("  ", "    "),
    ],
)
def test_a_record_that_was_changed_is_refused(before: str, after: str) -> None:
    text = ArchiveRecord({"a": "00"}, {"torch": "1"}).to_json()
    assert before in text
    with pytest.raises(ArchiveError, match="was changed after the build"):
        ArchiveRecord.from_json(text.replace(before, after, 1), source="a.mar")


NAMES = st.text("abc/._", min_size=1, max_size=4)
LISTS = st.dictionaries(NAMES, st.text("0123456789abcdef", min_size=4, max_size=4), max_size=4)


@given(LISTS, LISTS)
def test_other_paths_or_contents_have_another_digest(
    first: dict[str, str], second: dict[str, str]
) -> None:
    same = ArchiveRecord(first, {}).digest == ArchiveRecord(second, {}).digest
    assert same == (first == second)


@given(LISTS)
def test_a_path_counts_as_much_as_its_contents(files: dict[str, str]) -> None:
    renamed = {f"{path}x": digest for path, digest in files.items()}
    same = ArchiveRecord(files, {}).digest == ArchiveRecord(renamed, {}).digest
    assert same == (not files)


@given(LISTS)
def test_the_text_does_not_depend_on_the_order(files: dict[str, str]) -> None:
    backwards = dict(reversed(files.items()))
    text = ArchiveRecord(files, {"b": "2", "a": "1"}).to_json()
    assert text == ArchiveRecord(backwards, {"a": "1", "b": "2"}).to_json()
