"""From parts and headers to samples and options."""

from __future__ import annotations

import base64

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
def test_what_is_wrong_is_named_with_the_remedy(request_: RawRequest, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(request_, LIMITS)
    assert message in caught.value.message
    assert caught.value.status == 400


def test_too_many_samples() -> None:
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
