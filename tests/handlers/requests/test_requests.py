"""Requests are parsed from parts and headers to samples and options."""

from __future__ import annotations

import base64
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.errors import (
    EnsembleError,
    RequestError,
    SampleError,
    TooLargeError,
)
from torchserve_ensemble.handlers.requests.options import OnError
from torchserve_ensemble.handlers.requests.parsing import parse_request
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.requests.sample_names import distinct_names
from torchserve_ensemble.handlers.spec import Limits

LIMITS = Limits(max_samples=4)


def file(name: str = "file", value: bytes = b"image") -> Part:
    return Part(name, "image/png", value)


def field(name: str, value: str) -> Part:
    return Part(name, "", value.encode())


def json_body(document: object) -> RawRequest:
    return RawRequest([Part("body", "application/json", document)])


def test_a_raw_body_is_one_sample() -> None:
    parsed = parse_request(RawRequest([Part("body", "", bytearray(b"image"))]), LIMITS)
    assert [(s.name, s.index, s.data) for s in parsed.samples] == [("body", 0, b"image")]


def test_parts_of_one_name_all_arrive_in_order() -> None:
    parsed = parse_request(RawRequest([file(value=b"a"), file(value=b"b"), file("c")]), LIMITS)
    assert [s.data for s in parsed.samples] == [b"a", b"b", b"image"]
    assert [s.index for s in parsed.samples] == [0, 1, 2]


def zipped(*names: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            archive.writestr(name, b"image")
    return target.getvalue()


def npy(num_rows: int) -> bytes:
    target = io.BytesIO()
    np.save(target, np.zeros((num_rows, 3, 2, 2), np.float32))
    return target.getvalue()


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([file()], ["file"]),
        ([file("left"), file("right")], ["left", "right"]),
        ([file(), file("other"), file()], ["file[0]", "other", "file[1]"]),
        ([file(), file("file[0]"), file()], ["file[1]", "file[0]", "file[2]"]),
        ([file(value=npy(2))], ["file[0]", "file[1]"]),
        (
            [file(value=npy(2)), file(value=npy(2))],
            ["file[0][0]", "file[0][1]", "file[1][0]", "file[1][1]"],
        ),
        ([file(value=zipped("a.png", "b.png"))], ["a.png", "b.png"]),
        (
            [file(value=zipped("a.png", "b.png")), file(value=zipped("a.png"))],
            ["a.png[0]", "b.png", "a.png[1]"],
        ),
        ([file(), file(value=zipped("a.png"))], ["file[0]", "a.png"]),
        ([file("x" * 256), file("x" * 256)], ["x" * 256 + "[0]", "x" * 256 + "[1]"]),
        ([file("x" * 256, npy(2))], ["x" * 256 + "[0]", "x" * 256 + "[1]"]),
    ],
)
def test_every_sample_has_a_name_of_its_own(parts: list[Part], names: list[str]) -> None:
    samples = parse_request(RawRequest(parts), LIMITS).samples
    assert [sample.name for sample in samples] == names
    assert not any(isinstance(sample.data, SampleError) for sample in samples)


def test_the_error_of_an_archive_names_the_part_that_holds_it() -> None:
    with pytest.raises(RequestError, match=r"^file\[1\]: the zip file is damaged"):
        parse_request(RawRequest([file(value=zipped("a.png")), file(value=b"PK\x03\x04")]), LIMITS)


@pytest.mark.parametrize("name", ["x" * 257, "\ud800"])
def test_names_of_fields_that_an_answer_cannot_repeat_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="a name must be Unicode text of at most 256"):
        parse_request(RawRequest([file(name)]), LIMITS)


@given(st.lists(st.text("a[01]", max_size=5), max_size=12))
def test_numbered_names_differ_and_begin_with_the_old_ones(names: list[str]) -> None:
    numbered = distinct_names(names)
    assert len(set(numbered)) == len(names)
    for old, new in zip(names, numbered, strict=True):
        assert (new == old) == (names.count(old) == 1)
        assert new.startswith(old)


def test_options_come_from_fields_and_headers_and_fields_win() -> None:
    headers = {"policy": "all", "on-error": "skip", "accept": "*/*"}
    parsed = parse_request(
        RawRequest([field("policy", "any"), file(), field("top_k", "3")], headers), LIMITS
    )
    assert parsed.options.policy == "any"
    assert parsed.options.on_error is OnError.SKIP
    assert parsed.options.top_k == 3


def test_policy_parameters_are_json() -> None:
    parsed = parse_request(RawRequest([file(), field("policy_parameters", '{"k": 2}')]), LIMITS)
    assert parsed.options.policy_parameters == {"k": 2}


def test_kserve_v1_instances() -> None:
    image = base64.b64encode(b"image").decode()
    document = {
        "instances": [{"b64": image}, {"image_bytes": {"b64": image}}, image],
        "parameters": {"policy": "any"},
    }
    parsed = parse_request(json_body(document), LIMITS)
    assert [s.data for s in parsed.samples] == [b"image"] * 3
    assert parsed.options.policy == "any"


def test_one_bad_instance_does_not_hide_the_others() -> None:
    parsed = parse_request(json_body({"instances": [{"b64": "%%%"}, {"b64": ""}]}), LIMITS)
    assert isinstance(parsed.samples[0].data, SampleError)
    assert "instances[0]" in parsed.samples[0].data.message
    assert parsed.samples[1].data == b""


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RawRequest([]), "no sample"),
        (RawRequest([field("policy", "any")]), "no sample"),
        (RawRequest([file(), field("polcy", "any")]), "did you mean 'policy'"),
        (RawRequest([file(), field("top_k", "0")]), "top_k='0'"),
        (RawRequest([file(), field("top_k", "x")]), "top_k='x'"),
        (RawRequest([file(), field("on_error", "ignore")]), "'fail' or 'skip'"),
        (RawRequest([file(), field("policy_parameters", "{")]), "must be a JSON object"),
        (RawRequest([field("\ufffdPNG", "x")]), "--data-binary"),
        (json_body([1]), '"instances"'),
        (json_body({"instances": [], "policy": "any"}), 'options go into "parameters"'),
        (json_body({"instances": ["aa=="], "parameters": {"polcy": 1}}), "unknown option 'polcy'"),
        (RawRequest([Part("body", "application/json; charset=utf-8", b"{")]), "not valid JSON"),
    ],
)
def test_mistakes_are_named_with_a_remedy(request_: RawRequest, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(request_, LIMITS)
    assert message in caught.value.message
    assert caught.value.status == 400


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(TooLargeError, match=r"limits\.max_samples"):
        parse_request(RawRequest([file()] * 5), LIMITS)


VALUES = (
    st.binary()
    | st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("instances"), inner),
    )
)
PARTS = st.builds(
    Part,
    name=st.sampled_from(["body", "file", "policy", "policy_parameters", "top_k"]) | st.text(),
    content_type=st.sampled_from(["", "image/png", "application/json", "text/plain"]) | st.text(),
    value=VALUES,
)


@given(st.lists(PARTS, max_size=6), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_request_parses_or_is_refused(parts: list[Part], headers: dict[str, str]) -> None:
    try:
        parsed = parse_request(RawRequest(parts, headers), LIMITS)
    except EnsembleError as error:
        assert 400 <= error.status < 500
        assert error.message
    else:
        assert parsed.samples
