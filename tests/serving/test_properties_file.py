"""A config.properties is read and written as Java does it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.properties_file import read_properties, write_properties


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Each `expected` is what java.util.Properties of Java 17 reads.
        (b"# comment\na=1\n b = x=y \nno pair\n  # c=2\n", {"a": "1", "b": "x=y ", "no": "pair"}),
        (b"! comment\na: 1\nb 2\nc\t=\t3\nd", {"a": "1", "b": "2", "c": "3", "d": ""}),
        (b"a=1,\\\n   2,\\\r\n\t3\nb=4", {"a": "1,2,3", "b": "4"}),
        (b"a=1\\\n# no comment here\n", {"a": "1# no comment here"}),
        (b"# no backslash continues a comment \\\na=1", {"a": "1"}),
        (b"a\\=b\\:c\\ d=1\\=\\q\\\\", {"a=b:c d": "1=q\\"}),
        (b"a=\\t\\u00e9\\ud83d\\ude00|\xe9", {"a": "\té\U0001f600|é"}),
        (b"a=1\na=2", {"a": "2"}),
        (b"disable_token_authorization : true", {"disable_token_authorization": "true"}),
        (b"a=\\", {"a": ""}),
        (b"\\", {"": ""}),
        (b"a:=1\n=2\nb==3", {"a": "=1", "": "2", "b": "=3"}),
        (b"a=\\\n\nb=1", {"a": "", "b": "1"}),
        (b"", {}),
    ],
)
def test_properties_are_read_as_java_reads_them(
    tmp_path: Path, content: bytes, expected: dict[str, str]
) -> None:
    file = tmp_path / "config.properties"
    file.write_bytes(content)
    assert read_properties(file) == expected


def test_files_that_java_would_refuse_or_misread_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_bytes(b"a=\\u12g4")
    with pytest.raises(ServerError, match=r"four hexadecimal digits; Java refuses"):
        read_properties(file)
    file.write_bytes(b"\xef\xbb\xbfa=1")
    with pytest.raises(ServerError, match="byte order mark"):
        read_properties(file)
    with pytest.raises(ServerError, match=r"other.properties: cannot be read"):
        read_properties(tmp_path / "other.properties")


@given(st.dictionaries(st.text(), st.text()))
def test_written_properties_are_read_again_as_they_were(properties: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(write_properties(properties))
        file.flush()
        assert read_properties(Path(file.name)) == properties
