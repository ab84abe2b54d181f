"""Decode the samples of a whole batch of requests, and look up those whose scores are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..base.errors import EnsembleError, TooLargeError
from ..engine.runtime import Input
from ..engine.score_cache import CachedScores, ScoreCache
from ..requests.parsing import ParsedRequest, Sample
from .decoder import Decoder, Opened


@dataclass(frozen=True)
class DecodingTask:
    """One request whose samples are to be decoded.

    Attributes:
        request: the request.
        members: positions of the members that are to see its samples.
        uses_cache: whether scores of earlier samples may answer it. Not for a lazy policy, which
            runs fewer members than a cache entry has scores of.
    """

    request: ParsedRequest
    members: Sequence[int]
    uses_cache: bool


@dataclass(frozen=True)
class DecodedSample:
    """One sample that can be answered.

    Attributes:
        index: its position in the request.
        input: what the members take; None where the scores are cached.
        cache_key: the key under which its scores are worth keeping.
        cached: its scores, if an earlier request had the same sample.
    """

    index: int
    input: Input | None
    cache_key: bytes | None = None
    cached: CachedScores | None = None


@dataclass(frozen=True)
class DecodedRequest:
    """What became of the samples of one request.

    Attributes:
        samples: those that can be answered, in the request's order.
        errors: position in the request -> why that sample cannot be decoded.
    """

    samples: tuple[DecodedSample, ...] = ()
    errors: Mapping[int, EnsembleError] = field(default_factory=dict)


@dataclass(frozen=True)
class _LookedUp:
    """One sample after the look-up in the cache: cached scores, or a key to keep new ones under."""

    sample: Sample
    key: bytes | None = None
    cached: CachedScores | None = None


def decode_batch(
    tasks: Sequence[DecodingTask], decoder: Decoder, cache: ScoreCache | None, end: float
) -> list[DecodedRequest | TooLargeError]:
    """Decode the samples of all requests: first headers, then pixels within each request's budget.

    Args:
        tasks: the requests.
        decoder: opens and decodes.
        cache: scores of earlier samples, if the deployment keeps them.
        end: the time of ``time.monotonic`` from which on no further image is begun.

    Returns:
        One entry for each task, in order: its samples, or the error of a request whose samples
        together exceed its budget.
    """
    looked_up = [
        [_look_up(sample, task, cache) for sample in task.request.samples] for task in tasks
    ]
    unknown = [each.sample for group in looked_up for each in group if each.cached is None]
    remaining = iter(decoder.open_all(unknown))
    opened = [
        [None if each.cached is not None else next(remaining) for each in group]
        for group in looked_up
    ]
    excesses = [_excess(task.request, group) for task, group in zip(tasks, opened, strict=True)]
    jobs = [
        (each, task.members)
        for task, group, excess in zip(tasks, opened, excesses, strict=True)
        if excess is None
        for each in group
        if isinstance(each, Opened)
    ]
    decoded = iter(decoder.decode_all(jobs, end))
    results: list[DecodedRequest | TooLargeError] = []
    for group, found, excess in zip(looked_up, opened, excesses, strict=True):
        if excess is not None:
            results.append(excess)
            continue
        inputs = [next(decoded) if isinstance(each, Opened) else each for each in found]
        results.append(_decoded_request(group, inputs))
    return results


def _look_up(sample: Sample, task: DecodingTask, cache: ScoreCache | None) -> _LookedUp:
    # A tensor is no file that is likely to come again.
    if cache is None or not task.uses_cache or not isinstance(sample.data, bytes):
        return _LookedUp(sample)
    key = cache.key(sample.data)
    return _LookedUp(sample, key, cache.find(key, task.members))


def _excess(
    request: ParsedRequest, opened: Sequence[Opened | EnsembleError | None]
) -> TooLargeError | None:
    """Take the cost of decoding each sample from the request's budget."""
    try:
        for each in opened:
            if isinstance(each, Opened):
                request.budget.take_pixels(each.cost, each.sample.where)
    except TooLargeError as error:
        return error
    return None


def _decoded_request(
    looked_up: Sequence[_LookedUp], inputs: Sequence[Input | EnsembleError | None]
) -> DecodedRequest:
    samples: list[DecodedSample] = []
    errors: dict[int, EnsembleError] = {}
    for each, found in zip(looked_up, inputs, strict=True):
        index = each.sample.index
        if isinstance(found, EnsembleError):
            errors[index] = found
        else:
            samples.append(DecodedSample(index, found, each.key, each.cached))
    return DecodedRequest(tuple(samples), errors)
