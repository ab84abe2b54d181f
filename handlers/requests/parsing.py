"""From what a client sent to ordered samples and options.

The entry hands over each request as a `RawRequest`: its parts in the order they came and its
headers. `parse_request` turns it into a `ParsedRequest`, or raises a `RequestError` that answers
this request alone. Forms understood here:

- the whole body: an image, or a bundle of samples (see `bundles`)
- a multipart or URL-encoded form, in which fields named after an option are options and every
  other part is an image or a bundle, repeated names included
- JSON with ``instances`` (KServe v1, TF Serving)
- JSON with ``inputs``, or with the binary tensor extension (Open Inference Protocol v2)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base.errors import RequestError, SampleError, TooLargeError, UnsupportedError, reason
from ..base.quoting import MAX_NAME, is_text, shown
from ..base.suggestions import nearest
from ..spec import Limits
from .bounded_json import parse_json
from .budget import RequestBudget
from .bundles import Frame, Item, Unreadable, rows, unpack
from .compression import GZIP, Unpacked
from .instances import instance, instance_parameters
from .open_inference import InferRequest, InputTensor, parse_infer_request
from .options import OPTION_NAMES, RequestOptions, from_headers, parse_options

BODY = "body"
"""The name that TorchServe gives to a body that is not a form."""

HEADER_LENGTH = "inference-header-content-length"
"""Header of Open Inference requests with binary tensors: length of the JSON before them."""

_IGNORED_PARAMETERS = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}
)
"""Parameters of Triton's clients that mean nothing here."""

_MAX_LENGTH_DIGITS = 12
"""Digits of a number of bytes; Python refuses to read integers of some thousand digits."""

# A form field that is longer than this is no option that was misspelt.
_MAX_TEXT_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a request.

    Attributes:
        name: form field, or `BODY`.
        content_type: as sent; empty for a form field that is not a file, and in gRPC.
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
    """One sample of a request.

    Attributes:
        name: form field, place in the JSON, or entry of the archive.
        index: position in the request, from 0.
        data: an encoded image; pixels, uint8 (3, H, W); a member's input that the client
            preprocessed itself, float32 (C, H, W); a frame that is still to be decoded; or why the
            sample could not be read.
    """

    name: str
    index: int
    data: bytes | Tensor | Frame | SampleError

    @property
    def where(self) -> str:
        """The sample, for messages."""
        return f"sample {self.index} ({self.name})"


@dataclasses.dataclass(frozen=True)
class ParsedRequest:
    """A request's samples, in the client's order, its options, and its v2 frame if it has one.

    Attributes:
        budget: what decoding the samples may still use up.
    """

    samples: tuple[Sample, ...]
    options: RequestOptions
    budget: RequestBudget
    infer: InferRequest | None = None


def is_open_inference(request: RawRequest) -> bool:
    """Whether a client speaks Open Inference v2, and expects answers and errors in that form."""
    return HEADER_LENGTH in request.headers or any(map(_asks_for_inference, request.parts))


def _asks_for_inference(part: Part) -> bool:
    if isinstance(part.value, dict):
        return "inputs" in part.value
    if not _begins_as_json(part) and not _declares_json(part):
        return False
    text = part.value[:10_000] if isinstance(part.value, bytes | bytearray | str) else ""
    return '"inputs"' in str(text)


def parse_request(request: RawRequest, limits: Limits) -> ParsedRequest:
    """Turn one request into samples and options.

    Raises:
        RequestError: nothing to predict, or an option or the JSON is wrong.
        TooLargeError: more samples or bytes than the limits.
    """
    budget = RequestBudget(limits)
    _check_size(request.parts, limits)
    parts = _decoded_parts(request, budget)
    given: dict[str, Any] = dict(from_headers(request.headers))
    documents: list[dict[str, Any]] = []
    content: list[Part] = []
    infer: InferRequest | None = None
    if HEADER_LENGTH in request.headers:
        infer = _binary_infer(request, parts, budget)
    for part in parts if infer is None else ():
        if part.name in OPTION_NAMES:
            given[part.name] = _text(part)
        elif (document := _document(part, limits)) is None:
            content.append(part)
        elif "inputs" in document:
            infer = parse_infer_request(document, None, budget)
        else:
            documents.append(document)
            given |= instance_parameters(document)
    if infer is not None:
        given |= {k: v for k, v in infer.parameters.items() if k not in _IGNORED_PARAMETERS}
    options = parse_options(given)
    found: list[Item] = []
    for part in content:
        found += _items(part, options, budget)
    for document in documents:
        budget.take_samples(len(document["instances"]), "instances")
        found += [instance(value, i) for i, value in enumerate(document["instances"])]
    for tensor in infer.inputs if infer is not None else ():
        found += _input_items(tensor, budget)
    if not found:
        raise _nothing(request)
    return ParsedRequest(tuple(map(_sample, found, range(len(found)))), options, budget, infer)


def _sample(item: Item, index: int) -> Sample:
    name, data = item.name, item.data
    if len(name) > MAX_NAME or not is_text(name):
        # The answer names the sample, and a hundred bytes of an archive may hold a long name.
        name = name[:MAX_NAME].encode("utf-8", "replace").decode()
        data = Unreadable(f"its name must be Unicode text of at most {MAX_NAME} characters")
    if isinstance(data, Unreadable):
        message = f"sample {index} ({name}): {data.reason}"
        return Sample(name, index, SampleError(message, sample=name, index=index))
    return Sample(name, index, data)


def max_parts(limits: Limits) -> int:
    """How many parts a request may have: its samples, and options, some of them twice."""
    return limits.max_samples + 2 * len(OPTION_NAMES)


def _check_size(parts: Sequence[Part], limits: Limits) -> None:
    size = sum(len(part.value) for part in parts if isinstance(part.value, bytes | bytearray | str))
    if size > limits.max_request_bytes:
        raise TooLargeError(
            f"the request has {size} bytes; the limit is {limits.max_request_bytes} "
            "(limits.max_request_bytes in the spec): split the request"
        )
    max_count = max_parts(limits)
    if len(parts) > max_count:
        raise TooLargeError(
            f"the request has more than {max_count} parts; with {limits.max_samples} samples "
            f"at most (limits.max_samples in the spec) there can be no more: split the request"
        )
    for part in parts:
        if len(part.name) > MAX_NAME:
            raise RequestError(
                f"form field {shown(part.name)} has a name of {len(part.name)} characters; "
                f"{MAX_NAME} are the most"
            )


def _decoded_parts(request: RawRequest, budget: RequestBudget) -> Sequence[Part]:
    """The parts without their content coding (RFC 9110, 8.4), which TorchServe leaves in place.

    Raises:
        UnsupportedError: the coding is not gzip, or the body is a form, which TorchServe reads.
        RequestError: the body is not what the header says.
        TooLargeError: it unpacks to more than what is left of the budget.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return request.parts
    whole = len(request.parts) == 1 and request.parts[0].name == BODY
    if coding not in ("gzip", "x-gzip") or not whole:
        raise UnsupportedError(
            f"Content-Encoding: {shown(coding)} is not understood"
            + ("" if whole else " for forms")
            + "; send the body as it is, or a single body (image, archive or JSON) with gzip"
        )
    (part,) = request.parts
    data = _bytes(part)
    if not data.startswith(GZIP):
        raise RequestError("the body is not gzip, as its Content-Encoding says; leave that out")
    try:
        content = Unpacked(data, "the body", budget).read(budget.unpacked_bytes_left + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise RequestError(f"the gzip body is damaged ({reason(error)}); send it again") from None
    return [dataclasses.replace(part, value=content)]


def _document(part: Part, limits: Limits) -> dict[str, Any] | None:
    """A part's JSON; None if it is none."""
    value = part.value
    if isinstance(value, bytes | bytearray | str):
        if not _declares_json(part) and not _begins_as_json(part):
            return None
        value = parse_json(value, limits.max_json_values)
    if not isinstance(value, dict) or not (
        isinstance(value.get("instances"), list) or isinstance(value.get("inputs"), list)
    ):
        raise RequestError(
            'JSON must be an object with a list of "instances", each {"b64": "<base64 image>"}, or '
            'with a list of "inputs" (Open Inference Protocol v2)'
        )
    return value


def _declares_json(part: Part) -> bool:
    return part.content_type.split(";")[0].strip().lower() == "application/json"


def _begins_as_json(part: Part) -> bool:
    """JSON without a content type, as Triton's client and gRPC send it."""
    value = part.value
    return (
        isinstance(value, bytes | bytearray | str)
        and value[:1] in (b"{", "{")
        and (not part.content_type)
    )


def _binary_infer(
    request: RawRequest, parts: Sequence[Part], budget: RequestBudget
) -> InferRequest:
    text = request.headers[HEADER_LENGTH]
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_LENGTH_DIGITS:
        raise RequestError(f"header {HEADER_LENGTH}: must be a number of bytes, not {shown(text)}")
    if len(parts) != 1 or not isinstance(parts[0].value, bytes | bytearray):
        raise RequestError(
            f"a request with the header {HEADER_LENGTH} must have one binary body; send it with "
            "Content-Type: application/octet-stream"
        )
    return parse_infer_request(bytes(parts[0].value), int(text), budget)


def _input_items(tensor: InputTensor, budget: RequestBudget) -> list[Item]:
    """The samples of one v2 input: BYTES are encoded images, numbers are pixels or inputs."""
    if tensor.datatype == "BYTES":
        budget.take_samples(tensor.data.size, tensor.name)
        values = tensor.data.reshape(-1).tolist()
        return [Item(f"{tensor.name}[{i}]", value) for i, value in enumerate(values)]
    return rows(tensor.data, name=tensor.name, budget=budget)


def _items(part: Part, options: RequestOptions, budget: RequestBudget) -> list[Item]:
    if _is_text(part):
        raise _unknown_field(part)
    data = _bytes(part)
    items = unpack(data, name=part.name, split_frames=options.frames, budget=budget)
    if items is not None:
        return items
    budget.take_samples(1, part.name)
    return [Item(part.name, data)]


def _is_text(part: Part) -> bool:
    """A form field that is no file. TorchServe gives those no content type; nor has gRPC any."""
    if part.name == BODY or part.content_type:
        return False
    value = _bytes(part)
    try:
        return len(value) < _MAX_TEXT_BYTES and value.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return not part.name.isprintable() or "\ufffd" in part.name


def _unknown_field(part: Part) -> RequestError:
    if not part.name.isprintable() or "\ufffd" in part.name:
        return _garbled()
    return RequestError(
        f"form field '{part.name}' is text and no option; samples are sent as files (curl -F "
        f"{part.name}=@image.png), and options are {', '.join(OPTION_NAMES)}"
        f"{nearest(part.name, OPTION_NAMES)}"
    )


def _nothing(request: RawRequest) -> RequestError:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _garbled()
    return RequestError(
        "the request has no sample: send an image as the body, or each as a part of a form "
        "(curl -F file=@image.png)"
    )


def _garbled() -> RequestError:
    return RequestError(
        "the body came as an URL-encoded form, which garbles binary data (curl --data-binary "
        "declares it so): set the image's type, -H 'Content-Type: image/png', or send a form, "
        "-F file=@image.png"
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
    return str(part.value).encode("utf-8", "surrogatepass")


def lower_case(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header names compare without case; TorchServe keeps the client's."""
    return {name.lower(): value for name, value in headers}
