"""From what a client sent to ordered samples and options.

The entry hands over each request as a `RawRequest`: its parts in the order they came and its
headers. `parse_request` turns it into a `ParsedRequest`, or raises a `RequestError` that answers
this request alone. Forms understood here: one image as the whole body; a multipart or URL-encoded
form, in which fields named after an option are options and every other part is a sample, repeated
names included; JSON with ``instances`` (KServe v1, TF Serving).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import RequestError, SampleError, TooLargeError
from .spec import Limits
from .strict_yaml import nearest

BODY = "body"
"""The name that TorchServe gives to a body that is not a form."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a request.

    Attributes:
        name: form field, or `BODY`.
        content_type: as sent; empty for a form field that is not a file.
        value: the bytes; or what TorchServe's worker made of them: text, or decoded JSON.
    """

    name: str
    content_type: str
    value: Any


@dataclasses.dataclass(frozen=True)
class RawRequest:
    """One request as it came: parts in order, headers with lower-case names."""

    parts: Sequence[Part]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image, still encoded, or why it could not even be taken out of the request.

    Attributes:
        name: form field or place in the JSON.
        index: position in the request, from 0.
    """

    name: str
    index: int
    data: bytes | SampleError


class OnError(StrEnum):
    """What an unreadable sample does to the other samples of its request."""

    FAIL = "fail"
    SKIP = "skip"


def _from_json_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"must be a JSON object: {error}") from None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RequestOptions:
    """What a client may set for one request, as form field, header or JSON parameter."""

    policy: Annotated[str | None, Field(description="Combination policy")] = None
    policy_parameters: Annotated[
        dict[str, Any],
        BeforeValidator(_from_json_text),
        Field(description="The policy's parameters, as a JSON object"),
    ] = dataclasses.field(default_factory=dict)
    on_error: Annotated[
        OnError, Field(description="An unreadable sample refuses the request, or is skipped")
    ] = OnError.FAIL
    top_k: Annotated[
        int | None, Field(ge=1, description="Also give the k best labels with their scores")
    ] = None


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RequestOptions))
_OPTIONS = TypeAdapter(RequestOptions)


@dataclasses.dataclass(frozen=True)
class ParsedRequest:
    """A request's samples, in the client's order, and its options."""

    samples: tuple[Sample, ...]
    options: RequestOptions


def parse_request(request: RawRequest, limits: Limits) -> ParsedRequest:
    """Turn one request into samples and options.

    Raises:
        RequestError: nothing to predict, or an option or the JSON is wrong.
        TooLargeError: more samples than the limit.
    """
    options = {
        name: request.headers[name.replace("_", "-")]
        for name in OPTION_NAMES
        if name.replace("_", "-") in request.headers
    }
    named: list[tuple[str, bytes | SampleError]] = []
    for part in request.parts:
        if part.name in OPTION_NAMES:
            options[part.name] = _text(part)
        elif _is_json(part):
            images, parameters = _from_json(_json(part))
            named += images
            options |= parameters
        elif _is_plain_field(part):
            raise _unknown_field(part)
        else:
            named.append((part.name, _bytes(part)))
    if not named:
        raise RequestError(
            "the request has no sample: send an image as the body, or each as a part of a form "
            "(curl -F file=@image.png)"
        )
    if len(named) > limits.max_samples:
        raise TooLargeError(
            f"{len(named)} samples in one request; the limit is {limits.max_samples} "
            "(limits.max_samples in the spec): split the request"
        )
    samples = tuple(Sample(name, index, data) for index, (name, data) in enumerate(named))
    return ParsedRequest(samples, parse_options(options))


def parse_options(options: Mapping[str, Any]) -> RequestOptions:
    """Check options that came as text or JSON values.

    Raises:
        RequestError: names each wrong option, what it takes, and the nearest known name.
    """
    try:
        return _OPTIONS.validate_python(dict(options))
    except ValidationError as error:
        raise RequestError("; ".join(map(_option_message, error.errors()))) from None


def _option_message(detail: Any) -> str:
    name = str(detail["loc"][0])
    if detail["type"] == "unexpected_keyword_argument":
        return f"unknown option '{name}'{nearest(name, OPTION_NAMES)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"option {name}={detail['input']!r}: {message[0].lower()}{message[1:]}"


def _is_json(part: Part) -> bool:
    return part.content_type.split(";")[0].strip().lower() == "application/json"


def _json(part: Part) -> Any:
    """TorchServe decodes most JSON itself; the rest comes as bytes."""
    if not isinstance(part.value, bytes | bytearray | str):
        return part.value
    try:
        return json.loads(part.value)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None


def _from_json(document: Any) -> tuple[list[tuple[str, bytes | SampleError]], dict[str, Any]]:
    """KServe v1 / TF Serving: ``{"instances": [...], "parameters": {...}}``."""
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise RequestError(
            'JSON must be an object with a list of "instances", each {"b64": "<base64 image>"}'
        )
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError('"parameters" must be a JSON object of options')
    unknown = sorted(set(document) - {"instances", "parameters", "signature_name"})
    if unknown:
        raise RequestError(
            f'unknown key \'{unknown[0]}\' beside "instances"; options go into "parameters"'
        )
    return [
        _instance(value, index) for index, value in enumerate(document["instances"])
    ], parameters


def _instance(value: Any, index: int) -> tuple[str, bytes | SampleError]:
    name = f"instances[{index}]"
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    reason = 'must be {"b64": "<base64 image>"}'
    if isinstance(value, str):
        try:
            return name, base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            reason = f"not valid base64: {error}"
    return name, SampleError(f"sample {index} ({name}): {reason}", sample=name, index=index)


def _is_plain_field(part: Part) -> bool:
    """A form field that is no file: TorchServe gives those no content type."""
    return part.name != BODY and not part.content_type


def _unknown_field(part: Part) -> RequestError:
    if not part.name.isprintable() or "\ufffd" in part.name:
        return RequestError(
            "binary data came as an URL-encoded form, which garbles it (curl --data-binary does "
            "so): set the image's type, -H 'Content-Type: image/png', or send a form, -F file=@..."
        )
    return RequestError(
        f"unknown form field '{part.name}'{nearest(part.name, OPTION_NAMES)}; options are "
        f"{', '.join(OPTION_NAMES)}, and samples are sent as files (curl -F {part.name}=@image.png)"
    )


def _text(part: Part) -> Any:
    if isinstance(part.value, bytes | bytearray):
        try:
            return part.value.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"option '{part.name}' is not UTF-8 text") from None
    return part.value


def _bytes(part: Part) -> bytes:
    if isinstance(part.value, bytes | bytearray):
        return bytes(part.value)
    return str(part.value).encode("utf-8")


def lower_case(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header names compare without case; TorchServe keeps the client's."""
    return {name.lower(): value for name, value in headers}
