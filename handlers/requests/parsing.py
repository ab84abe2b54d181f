"""Parses a request: from its parts and headers to ordered samples and options.

The entry hands over each request as a `RawRequest`. `parse_request` turns it into a
`ParsedRequest`, or raises a `RequestError`, which refuses this request alone. A request may be:

- an image, or a bundle of samples (see `bundles`), as the whole body;
- a multipart or URL-encoded form: a field with the name of an option is that option, and every
  other part is an image or a bundle, also if several parts have the same name;
- JSON with ``instances`` (KServe v1, TensorFlow Serving);
- JSON with ``inputs``, alone or followed by binary tensors (Open Inference Protocol v2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..base.errors import RequestError, SampleError
from ..base.quoting import shown
from ..base.suggestions import nearest
from ..spec import Limits
from .bounded_json import parse_json
from .budget import RequestBudget
from .bundles import Frame, Item, Unreadable, rows, unpack
from .content_coding import decoded_parts
from .instances import instance, instance_parameters
from .open_inference import InferRequest, InputTensor, parse_infer_request
from .options import OPTION_NAMES, RequestOptions, options_from_headers, parse_options
from .raw_request import BODY, HEADER_LENGTH, Part, RawRequest, check_size
from .sample_names import distinct_names

_IGNORED_PARAMETERS = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}
)
"""Parameters that Triton's clients send and that have no meaning for an ensemble."""

_MAX_LENGTH_DIGITS = 12
"""Digits of the length in `HEADER_LENGTH`; Python refuses to read more than 4,300."""

_MAX_TEXT_FIELD_BYTES = 4096
"""A longer form field is taken for an image, a shorter printable one for a misspelt option."""

_MAX_SEARCHED_CHARACTERS = 10_000
"""The key ``inputs`` is searched only in this many characters at the beginning of a body."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a request.

    Attributes:
        name: where the sample came from, different for all samples of a request: the form field,
            the path of an entry in an archive, or the position in JSON or in a batch.
        index: position in the request, from 0.
        data: an encoded image; pixels, uint8 (3, H, W); an input that the client preprocessed
            itself, float32 (C, H, W); a frame that is still to be decoded; or the error that says
            why the sample could not be read.
    """

    name: str
    index: int
    data: bytes | Tensor | Frame | SampleError

    @property
    def where(self) -> str:
        """Position and name of the sample, for messages."""
        return f"sample {self.index} ({self.name})"


@dataclasses.dataclass(frozen=True)
class ParsedRequest:
    """The content of one request.

    Attributes:
        samples: all samples, in the client's order.
        options: the options that the client set, and the defaults of all others.
        budget: counts what the request has used up; decoding its samples is counted as well.
        infer: the request in the Open Inference Protocol; None if the client speaks another one.
    """

    samples: tuple[Sample, ...]
    options: RequestOptions
    budget: RequestBudget
    infer: InferRequest | None = None


def is_open_inference(request: RawRequest) -> bool:
    """Return whether a client speaks Open Inference v2, so that errors must be in that protocol."""
    return HEADER_LENGTH in request.headers or any(map(_has_inputs, request.parts))


def _has_inputs(part: Part) -> bool:
    """Return whether a part is JSON with the key ``inputs``; the JSON may be invalid."""
    if isinstance(part.value, dict):
        return "inputs" in part.value
    if not _begins_as_json(part) and not _declares_json(part):
        return False
    is_text = isinstance(part.value, bytes | bytearray | str)
    return is_text and '"inputs"' in str(part.value[:_MAX_SEARCHED_CHARACTERS])


def parse_request(request: RawRequest, limits: Limits) -> ParsedRequest:
    """Turn one request into samples and options.

    Args:
        request: the parts and headers that the worker received.
        limits: the deployment's limits on one request.

    Raises:
        RequestError: the request has no sample, or an option or its JSON is wrong.
        TooLargeError: the request exceeds one of the limits.
        UnsupportedError: the body has a content coding that is not understood.
    """
    budget = RequestBudget(limits)
    check_size(request.parts, limits)
    parts = decoded_parts(request, budget)
    option_values: dict[str, Any] = dict(options_from_headers(request.headers))
    documents: list[dict[str, Any]] = []
    sample_parts: list[Part] = []
    infer: InferRequest | None = None
    if HEADER_LENGTH in request.headers:
        infer = _infer_request_with_binary_data(request, parts, budget)
        parts = ()
    for part in parts:
        if part.name in OPTION_NAMES:
            option_values[part.name] = _option_value(part)
        elif (document := _json_document(part, limits)) is None:
            sample_parts.append(part)
        elif "inputs" in document:
            infer = parse_infer_request(document, None, budget)
        else:
            documents.append(document)
            option_values |= instance_parameters(document)
    if infer is not None:
        option_values |= {
            name: value
            for name, value in infer.parameters.items()
            if name not in _IGNORED_PARAMETERS
        }
    options = parse_options(option_values)
    items: list[Item] = []
    part_names = distinct_names([part.name for part in sample_parts])
    for part, name in zip(sample_parts, part_names, strict=True):
        items += _items_of_part(part, name, options, budget)
    for document in documents:
        budget.take_samples(len(document["instances"]), "instances")
        items += [instance(value, index) for index, value in enumerate(document["instances"])]
    for tensor in infer.inputs if infer is not None else ():
        items += _items_of_tensor(tensor, budget)
    if not items:
        raise _no_sample_error(request)
    return ParsedRequest(_samples(items), options, budget, infer)


def _samples(items: Sequence[Item]) -> tuple[Sample, ...]:
    """Number the items of a request, and give each of them a name of its own."""
    names = distinct_names([item.name for item in items])
    samples: list[Sample] = []
    for index, (item, name) in enumerate(zip(items, names, strict=True)):
        data = item.data
        if isinstance(data, Unreadable):
            message = f"sample {index} ({name}): {data.reason}"
            samples.append(Sample(name, index, SampleError(message, sample=name, index=index)))
        else:
            samples.append(Sample(name, index, data))
    return tuple(samples)


def _json_document(part: Part, limits: Limits) -> dict[str, Any] | None:
    """Parse a part that is JSON; return None if the part is an image, a bundle or text."""
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
    """Return whether the content type of a part is JSON."""
    return part.content_type.split(";")[0].strip().lower() == "application/json"


def _begins_as_json(part: Part) -> bool:
    """Return whether a part begins with ``{`` and has no content type.

    Triton's clients and gRPC clients send JSON in this way.
    """
    value = part.value
    return (
        isinstance(value, bytes | bytearray | str)
        and value[:1] in (b"{", "{")
        and (not part.content_type)
    )


def _infer_request_with_binary_data(
    request: RawRequest, parts: Sequence[Part], budget: RequestBudget
) -> InferRequest:
    """Parse an Open Inference request whose body is JSON followed by binary tensors."""
    length = request.headers[HEADER_LENGTH]
    if not length.isascii() or not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        raise RequestError(
            f"header {HEADER_LENGTH}: must be a number of bytes, not {shown(length)}"
        )
    if len(parts) != 1 or not isinstance(parts[0].value, bytes | bytearray):
        raise RequestError(
            f"a request with the header {HEADER_LENGTH} must have one binary body; send it with "
            "Content-Type: application/octet-stream"
        )
    return parse_infer_request(bytes(parts[0].value), int(length), budget)


def _items_of_tensor(tensor: InputTensor, budget: RequestBudget) -> list[Item]:
    """Take a v2 input apart: BYTES are encoded images, numbers are pixels or preprocessed."""
    if tensor.datatype == "BYTES":
        budget.take_samples(tensor.data.size, tensor.name)
        values = tensor.data.reshape(-1).tolist()
        return [Item(f"{tensor.name}[{index}]", value) for index, value in enumerate(values)]
    return rows(tensor.data, name=tensor.name, budget=budget)


def _items_of_part(
    part: Part, name: str, options: RequestOptions, budget: RequestBudget
) -> list[Item]:
    """Take a part apart if it is a bundle; any other part is one encoded image.

    Args:
        part: a part that is neither an option nor JSON.
        name: the name of the part, with a number if several parts have the same name.
        options: options of the request; they say whether animations are split into frames.
        budget: budget of the request.
    """
    if _is_text_field(part):
        raise _unknown_field_error(part)
    data = part.as_bytes()
    items = unpack(data, name=name, split_frames=options.frames, budget=budget)
    if items is not None:
        return items
    budget.take_samples(1, name)
    return [Item(name, data)]


def _is_text_field(part: Part) -> bool:
    """Return whether a part is a form field that is not a file, and so neither image nor bundle.

    TorchServe gives such a field no content type. The parts of a gRPC request have none either, so
    the content decides as well: text is short and printable. A part with a garbled name counts
    as text too: its "name" is the beginning of an image that was read as a form.
    """
    if part.name == BODY or part.content_type:
        return False
    value = part.as_bytes()
    try:
        return len(value) < _MAX_TEXT_FIELD_BYTES and value.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return _is_garbled(part.name)


def _is_garbled(name: str) -> bool:
    """Return whether the name of a form field looks like binary data that was read as a form."""
    return not name.isprintable() or "\ufffd" in name


def _unknown_field_error(part: Part) -> RequestError:
    """Make the error for a text field that is not an option."""
    if _is_garbled(part.name):
        return _url_encoded_error()
    return RequestError(
        f"form field '{part.name}' is text and no option; samples are sent as files (curl -F "
        f"{part.name}=@image.png), and options are {', '.join(OPTION_NAMES)}"
        f"{nearest(part.name, OPTION_NAMES)}"
    )


def _no_sample_error(request: RawRequest) -> RequestError:
    """Make the error for a request that is empty or consists of options alone."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        return _url_encoded_error()
    return RequestError(
        "the request has no sample: send an image as the body, or each as a part of a form "
        "(curl -F file=@image.png)"
    )


def _url_encoded_error() -> RequestError:
    """Make the error for an image that TorchServe has read as an URL-encoded form."""
    return RequestError(
        "the body came as an URL-encoded form, which garbles binary data (curl --data-binary "
        "declares it so): set the image's type, -H 'Content-Type: image/png', or send a form, "
        "-F file=@image.png"
    )


def _option_value(part: Part) -> Any:
    """Return the value of a form field that is an option: text, or JSON that is decoded already.

    Raises:
        RequestError: the value is not UTF-8.
    """
    if isinstance(part.value, bytes | bytearray):
        try:
            return part.value.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"option '{part.name}' is not UTF-8 text") from None
    return part.value
