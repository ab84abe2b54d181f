"""The options that a client may set for one request.

An option is a form field, a header, or a parameter in the JSON of KServe v1 or Open Inference v2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..base.errors import RequestError
from ..base.quoting import is_text, shown, shown_names
from ..base.suggestions import nearest

_MAX_TEXT_CHARACTERS = 1 << 16
"""Limit on one text in the value of an option; frame_order of 256 frames has 5,000 characters."""

_MAX_VALUES_PER_OPTION = 10_000
"""Limit on the numbers, texts, lists and objects in the value of an option."""

_MAX_NESTING_DEPTH = 8
"""Limit on lists and objects inside each other in the value of an option; all options need two."""

_MAX_REPORTED_OPTIONS = 3
"""An error message names this many wrong options, even if there are more."""

_MAX_VOTING_WEIGHT = 1e9
"""Limit on a voting weight, as in the spec. Weights are float32, whose largest number is 3.4e38."""


class OnError(StrEnum):
    """Whether an unreadable sample refuses its whole request or is only skipped."""

    FAIL = "fail"
    SKIP = "skip"


class ResponseFormat(StrEnum):
    """The format in which an answer is written."""

    JSON = "json"
    LINES = "lines"
    FLEXSERVE = "flexserve"
    FLEXSERVE_CLASSIFY = "flexserve-classify"
    TENSORS = "tensors"


class AnswerField(StrEnum):
    """The fields of an answer, from which a client may choose."""

    MODEL = "model"
    POLICY = "policy"
    SAMPLE = "sample"
    LABEL = "label"
    LABELS = "labels"
    SCORE = "score"
    SCORES = "scores"
    VALUES = "values"
    MEMBERS = "members"
    UNCERTAINTY = "uncertainty"


class Smoothing(StrEnum):
    """How the decisions of consecutive frames of a request are smoothed."""

    MAJORITY = "majority"
    AVERAGE = "average"


def _parse_json_text(value: Any) -> Any:
    """Parse a list or object that a form field or a header carries as JSON text.

    Raises:
        ValueError: the text is not JSON, or its content is larger than that of an option may be.
    """
    if not isinstance(value, str):
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object or list: {error}") from None
    _check_size_and_depth(content)
    return content


def _check_size_and_depth(value: Any) -> None:
    """Check that the value of an option is not too large and not too deeply nested.

    Raises:
        ValueError: the value is too large or too deeply nested.
    """
    level, depth, count = [value], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if count > _MAX_VALUES_PER_OPTION:
            raise ValueError(f"holds more than {_MAX_VALUES_PER_OPTION} values")
        if depth > _MAX_NESTING_DEPTH:
            raise ValueError(f"is nested deeper than {_MAX_NESTING_DEPTH} levels")
        next_level: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                next_level += [*each, *each.values()]
            elif isinstance(each, list):
                next_level += each
            elif isinstance(each, str) and len(each) > _MAX_TEXT_CHARACTERS:
                raise ValueError(f"has {len(each)} characters, and may have {_MAX_TEXT_CHARACTERS}")
        level = next_level


def _parse_list_text(value: Any) -> Any:
    """Parse a list that a form field or a header carries as text: JSON, or values between commas.

    Raises:
        ValueError: the text begins as a JSON list does, and is not one.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _parse_json_text(value)
    return [item.strip() for item in value.split(",")]


Probability = Annotated[float, Field(ge=0, le=1)]
VotingWeight = Annotated[float, Field(ge=0, le=_MAX_VOTING_WEIGHT)]
Fields = Annotated[
    Annotated[tuple[AnswerField, ...], Field(max_length=len(AnswerField))],
    BeforeValidator(_parse_list_text),
]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RequestOptions:
    """The options of one request; the descriptions of the fields are shown to users.

    In form fields and headers a list is written with commas or as JSON, and an object as JSON.
    """

    policy: Annotated[
        str | None, Field(description="Name or expression of the policy; left out: the default")
    ] = None
    policy_parameters: Annotated[
        dict[str, Any],
        BeforeValidator(_parse_json_text),
        Field(description="Parameters of the policy, as a JSON object"),
    ] = dataclasses.field(default_factory=dict)
    members: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        BeforeValidator(_parse_list_text),
        Field(description="Names of the members that answer; left out: all"),
    ] = None
    weights: Annotated[
        dict[str, VotingWeight],
        BeforeValidator(_parse_json_text),
        Field(description="Voting weights by member, as a JSON object; others keep the spec's"),
    ] = dataclasses.field(default_factory=dict)
    thresholds: Annotated[
        dict[str, Probability],
        BeforeValidator(_parse_json_text),
        Field(description="Thresholds of members' votes by member, as a JSON object"),
    ] = dataclasses.field(default_factory=dict)
    deadline_ms: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Field(
            description="Milliseconds after which no member begins; replaces failures.deadline_ms"
        ),
    ] = None
    lazy: Annotated[
        bool | None,
        Field(
            description="Run no more members than the decision needs; the answer then does not "
            "list the members. For any, all, at_least, majority, plurality, unanimous and cascade"
        ),
    ] = None
    on_error: Annotated[
        OnError,
        Field(description="fail: an unreadable sample refuses the request; skip: it is left out"),
    ] = OnError.FAIL
    top_k: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="Also give the k labels with the highest scores"),
    ] = None
    fields: Annotated[
        Fields | None, Field(description="The only fields of the answer, e.g. label")
    ] = None
    include: Annotated[
        Fields, Field(description="Further fields of the answer, e.g. uncertainty, scores")
    ] = ()
    response: Annotated[
        ResponseFormat | None,
        Field(description="Format of the answer; left out: what Accept asks for"),
    ] = None
    sticky_key: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Field(
            description="While a candidate answers a share of the requests: all requests with the "
            "same key, such as the name of a user, are answered by the same side"
        ),
    ] = None
    frames: Annotated[
        bool, Field(description="Each frame of an animation, and each page of a TIFF, is a sample")
    ] = False
    stream: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Field(description="Name of a sequence; the answer repeats it"),
    ] = None
    frame_order: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None,
        BeforeValidator(_parse_list_text),
        Field(description="Place of each sample in time, if samples are not sent in that order"),
    ] = None
    smooth: Annotated[
        Smoothing | None,
        Field(
            description="Also give a decision smoothed over the frames: majority of the last "
            "smooth_window frames, or exponential moving average with smooth_alpha"
        ),
    ] = None
    smooth_window: Annotated[
        int, Field(ge=1, le=100_000, description="Number of frames for majority")
    ] = 5
    smooth_alpha: Annotated[
        float, Field(gt=0, le=1, description="Weight of the newest frame for average")
    ] = 0.3


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RequestOptions))
"""Names of all options, as form fields and JSON spell them."""

_OPTIONS = TypeAdapter(RequestOptions)


def parse_options(options: Mapping[str, Any]) -> RequestOptions:
    """Check the options of a request and convert them from text or JSON values.

    Args:
        options: name of an option -> its value.

    Raises:
        RequestError: an option does not exist or has a wrong value. The message names the first
            wrong options, what they accept, and the option with the most similar name.
    """
    # Names and sizes are checked first, because parsing and comparing large values takes time.
    unknown = [name for name in options if name not in OPTION_NAMES]
    if unknown:
        first = unknown[0] if is_text(unknown[0]) else ""
        raise RequestError(
            f"unknown option {shown_names(unknown)}{nearest(first, OPTION_NAMES)}; the options are "
            f"{', '.join(OPTION_NAMES)}"
        )
    for name, value in options.items():
        try:
            _check_size_and_depth(value)
        except ValueError as error:
            raise RequestError(f"option {name}: {error}") from None
    try:
        return _OPTIONS.validate_python(dict(options))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise RequestError("; ".join(map(_message, details[:_MAX_REPORTED_OPTIONS]))) from None


def options_from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the options among the headers of a request.

    Args:
        headers: value of each header by its name in lower case. The names of options are written
            with hyphens, such as ``on-error``.
    """
    return {
        name: headers[name.replace("_", "-")]
        for name in OPTION_NAMES
        if name.replace("_", "-") in headers
    }


def describe_options() -> list[dict[str, Any]]:
    """Return name, description and default of each option, for the describe answer."""
    properties: Iterable[tuple[str, Any]] = _OPTIONS.json_schema()["properties"].items()
    return [
        {"name": name, "description": each["description"], "default": each.get("default")}
        for name, each in properties
    ]


def _message(detail: Any) -> str:
    """Make the message for one of Pydantic's error details."""
    option = detail["loc"][0]
    problem = detail["msg"].removeprefix("Value error, ")
    return f"option {option}={shown(detail['input'])}: {problem[0].lower()}{problem[1:]}"
