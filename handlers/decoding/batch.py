"""The decode stage: looks the samples of a whole batch up in the score cache, or decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..base.errors import EnsembleError, TooLargeError
from ..engine.member_inputs import Input
from ..engine.score_cache import CachedScores, ScoreCache
from ..requests.budget import RequestBudget
from ..requests.parsing import Sample
from .decoder import Decoder, Opened


@dataclass(frozen=True)
class SamplesToDecode:
    """The samples of one request, and what decoding them may cost.

    Attributes:
        samples: the samples, in the order of the request.
        members: positions of the members that run on them.
        budget: budget of the request, in which the pixels are counted.
        may_use_cache: whether cached scores may take the place of decoding; false if the members
            run lazily, which neither reads nor fills the cache.
    """

    samples: Sequence[Sample]
    members: Sequence[int]
    budget: RequestBudget
    may_use_cache: bool


@dataclass(frozen=True)
class DecodedSamples:
    """The samples of one request after decoding; N of them are readable.

    Attributes:
        indices: positions in the request of the N readable samples.
        inputs: N inputs for the members; an empty tensor where the scores are cached.
        cached: position among the N samples -> its cached scores.
        keys: position among the N samples -> the cache key of its encoded image.
        errors: position in the request -> why that sample is unreadable.
    """

    indices: tuple[int, ...]
    inputs: tuple[Input, ...]
    cached: Mapping[int, CachedScores]
    keys: Mapping[int, bytes]
    errors: Mapping[int, EnsembleError]


@dataclass(frozen=True)
class _Lookup:
    """The cache key of a sample, if it has one, and its cached scores, if there are any."""

    key: bytes | None = None
    scores: CachedScores | None = None


def decode_batch(
    requests: Sequence[SamplesToDecode], decoder: Decoder, cache: ScoreCache | None, end: float
) -> list[DecodedSamples | TooLargeError]:
    """Decode the samples of all requests together; samples with cached scores are not decoded.

    All headers are read first, and the cost of each request is counted in its budget. Then pixels
    are decoded, but only those of requests that stay within their budgets.

    Args:
        requests: the requests of a batch.
        decoder: reads headers and pixels.
        cache: the score cache, if the deployment has one.
        end: the time of ``time.monotonic`` from which on decoding of no further image begins.

    Returns:
        For each request its samples, or the error if it exceeds its budget.
    """
    lookups = [[_look_up(request, each, cache) for each in request.samples] for request in requests]
    to_open = [
        (sample, request.members)
        for request, of_request in zip(requests, lookups, strict=True)
        for sample, lookup in zip(request.samples, of_request, strict=True)
        if lookup.scores is None
    ]
    all_opened = iter(decoder.open_all(to_open))
    opened = [
        [next(all_opened) for lookup in of_request if lookup.scores is None]
        for of_request in lookups
    ]
    excesses = [_charge(*each) for each in zip(requests, opened, strict=True)]
    decoded = iter(
        decoder.decode_all(
            [
                (each, request.members)
                for request, of_request, excess in zip(requests, opened, excesses, strict=True)
                if excess is None
                for each in of_request
                if isinstance(each, Opened)
            ],
            end,
        )
    )
    return [
        _collect(request, of_request, iter(headers), decoded) if excess is None else excess
        for request, of_request, headers, excess in zip(
            requests, lookups, opened, excesses, strict=True
        )
    ]


def _look_up(request: SamplesToDecode, sample: Sample, cache: ScoreCache | None) -> _Lookup:
    """Look a sample up in the cache; only encoded images have a key, since only they repeat."""
    if cache is None or not request.may_use_cache or not isinstance(sample.data, bytes):
        return _Lookup()
    key = cache.key(sample.data)
    return _Lookup(key, cache.get(key, request.members))


def _charge(
    request: SamplesToDecode, opened: Sequence[Opened | EnsembleError]
) -> TooLargeError | None:
    """Count the cost of decoding in the request's budget; return the error if it is exceeded."""
    try:
        for each in opened:
            if isinstance(each, Opened):
                request.budget.take_pixels(each.cost, each.sample.where)
    except TooLargeError as error:
        return error
    return None


def _collect(
    request: SamplesToDecode,
    lookups: Sequence[_Lookup],
    opened: Iterator[Opened | EnsembleError],
    decoded: Iterator[Input | EnsembleError],
) -> DecodedSamples:
    """Put the cached and the decoded samples of one request back into its order.

    Args:
        request: the request.
        lookups: one for each of its samples.
        opened: headers of its samples that are not cached.
        decoded: inputs of the whole batch, of which this request's are the next ones.
    """
    indices: list[int] = []
    inputs: list[Input] = []
    cached: dict[int, CachedScores] = {}
    keys: dict[int, bytes] = {}
    errors: dict[int, EnsembleError] = {}
    for sample, lookup in zip(request.samples, lookups, strict=True):
        position = len(inputs)
        value: Input | EnsembleError
        if lookup.scores is not None:
            cached[position] = lookup.scores
            value = torch.empty(0)
        else:
            header = next(opened)
            value = next(decoded) if isinstance(header, Opened) else header
        if isinstance(value, EnsembleError):
            errors[sample.index] = value
            continue
        inputs.append(value)
        indices.append(sample.index)
        if lookup.key is not None:
            keys[position] = lookup.key
    return DecodedSamples(tuple(indices), tuple(inputs), cached, keys, errors)
