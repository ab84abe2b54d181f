"""What a client may set for one request: as form field, header, JSON or v2 parameter."""

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

_MAX_CHARACTERS = 1 << 16
"""Of the text of one option: the places of 256 frames take 5,000."""

_MAX_VALUES = 10_000
"""Numbers, texts, lists and objects in the value of one option."""

_MAX_DEPTH = 8
"""Levels of lists and objects in the value of one option; no option takes more than two."""

_MAX_MISTAKES = 3
"""Wrong options that one message tells of."""

_MAX_WEIGHT = 1e9
"""A weighted mean is computed in float32; beyond some 1e38 there would be no number."""


class OnError(StrEnum):
    """What an unreadable sample does to the other samples of its request."""

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
    """Parts of an answer that a client may ask for."""

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
    """How decisions are smoothed over the frames of a request."""

    MAJORITY = "majority"
    AVERAGE = "average"


def _json_text(value: Any) -> Any:
    """Forms and headers carry text; objects and lists come as JSON in it."""
    if not isinstance(value, str):
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object or list: {error}") from None
    _check_extent(content)
    return content


def _check_extent(value: Any) -> None:
    """Check that a client's value is no larger and no deeper than an option may be.

    Raises:
        ValueError: it is.
    """
    level, depth, count = [value], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if count > _MAX_VALUES:
            raise ValueError(f"holds more than {_MAX_VALUES} values")
        if depth > _MAX_DEPTH:
            raise ValueError(f"is nested deeper than {_MAX_DEPTH} levels")
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str) and len(each) > _MAX_CHARACTERS:
                raise ValueError(f"has {len(each)} characters, and may have {_MAX_CHARACTERS}")
        level = inner


def _list(value: Any) -> Any:
    """A JSON list, or the same written with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json_text(value)
    return [item.strip() for item in value.split(",")]


def _number_or_json(value: Any) -> Any:
    return _json_text(value) if isinstance(value, str) and value.lstrip()[:1] == "{" else value


Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=_MAX_WEIGHT)]
Fields = Annotated[
    Annotated[tuple[AnswerField, ...], Field(max_length=len(AnswerField))], BeforeValidator(_list)
]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RequestOptions:
    """The options of one request. Lists may be written with commas, objects as JSON text."""

    policy: Annotated[
        str | None, Field(description="Name or expression of the policy; left out: the default")
    ] = None
    policy_parameters: Annotated[
        dict[str, Any],
        BeforeValidator(_json_text),
        Field(description="Parameters of the policy, as a JSON object"),
    ] = dataclasses.field(default_factory=dict)
    members: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        BeforeValidator(_list),
        Field(description="Names of the members that answer; left out: all"),
    ] = None
    weights: Annotated[
        dict[str, Weight],
        BeforeValidator(_json_text),
        Field(description="Voting weights by member, as a JSON object; for others the spec's hold"),
    ] = dataclasses.field(default_factory=dict)
    thresholds: Annotated[
        dict[str, Probability],
        BeforeValidator(_json_text),
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
            description="Run no more members than the decision needs; the answer then has no "
            "members. For any, all, at_least, majority, plurality, unanimous and cascade"
        ),
    ] = None
    on_error: Annotated[
        OnError,
        Field(description="fail: an unreadable sample refuses the request; skip: only itself"),
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
    frames: Annotated[
        bool, Field(description="Each frame of an animation, and each page of a TIFF, is a sample")
    ] = False
    stream: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Field(description="Name of a sequence; the answer repeats it"),
    ] = None
    frame_order: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None,
        BeforeValidator(_list),
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
_OPTIONS = TypeAdapter(RequestOptions)


def parse_options(options: Mapping[str, Any]) -> RequestOptions:
    """Check options that came as text or JSON values.

    Raises:
        RequestError: names the first wrong options, what they take, and the nearest known name.
    """
    # Cheap first: names and sizes, before anything is compared, parsed or converted.
    unknown = [name for name in options if name not in OPTION_NAMES]
    if unknown:
        first = unknown[0] if is_text(unknown[0]) else ""
        raise RequestError(
            f"unknown option {shown_names(unknown)}{nearest(first, OPTION_NAMES)}; the options are "
            f"{', '.join(OPTION_NAMES)}"
        )
    for name, value in options.items():
        try:
            _check_extent(value)
        except ValueError as error:
            raise RequestError(f"option {name}: {error}") from None
    try:
        return _OPTIONS.validate_python(dict(options))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise RequestError("; ".join(map(_message, details[:_MAX_MISTAKES]))) from None


def from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Options among a request's headers, whose names are written with hyphens."""
    return {
        name: headers[name.replace("_", "-")]
        for name in OPTION_NAMES
        if name.replace("_", "-") in headers
    }


def describe_options() -> list[dict[str, Any]]:
    """Name, description and default of each option, for the describe answer."""
    properties: Iterable[tuple[str, Any]] = _OPTIONS.json_schema()["properties"].items()
    return [
        {"name": name, "description": each["description"], "default": each.get("default")}
        for name, each in properties
    ]


def _message(detail: Any) -> str:
    place = [str(part) for part in detail["loc"] if isinstance(part, str | int)]
    message = detail["msg"].removeprefix("Value error, ")
    return f"option {place[0]}={shown(detail['input'])}: {message[0].lower()}{message[1:]}"
