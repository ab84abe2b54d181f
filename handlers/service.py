"""The way of the data: parse, decode, preprocess, run, combine, answer.

No type of TorchServe appears here: the same service answers in a worker, in a test, and in
``ts-ensemble predict --local``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .answers.encoding import Response, encode_error
from .answers.json_answers import predictions_of
from .answers.response_formats import check_size, form_of, too_long, write
from .base.errors import (
    BusyError,
    EnsembleError,
    MemberError,
    RequestError,
    TooLargeError,
    busy,
    unforeseen,
)
from .base.threads import SERIAL, ThreadPool
from .decisions.combining import Choice, Combiner, refuses
from .decisions.result import Result
from .decisions.sequences import check_frame_order
from .decoding import Decoder, Opened
from .engine.runtime import Input, MemberScores, Runtime
from .engine.score_cache import KnownScores, ScoreCache, with_known
from .inputs.example_inputs import trial_images
from .policies import Catalogue, rows_of
from .requests.options import Form, describe_options
from .requests.parsing import (
    ParsedRequest,
    RawRequest,
    Sample,
    is_open_inference,
    max_parts,
    parse_request,
)
from .spec import EnsembleSpec

logger = logging.getLogger(__name__)

_SHARE_OF_TIMEOUT = 0.5
"""Share of the response timeout after which a batch begins nothing new.

TorchServe ends a worker that is silent for longer than that timeout, and with it every request of
the batch. What is left then is refused, and may be sent again.
"""

_WARM = 32
"""Most samples in one batch that a worker computes before it is ready."""

_WARM_SECONDS = 1.0
"""After which it leaves the kernels of the remaining batch sizes to the first requests."""


@dataclass(frozen=True)
class Identity:
    """Which model answers: its registered name, its version, and its archive's digest."""

    name: str
    version: str
    archive: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """As it stands in every answer."""
        return {"name": self.name, "version": self.version, "archive": self.archive}


@dataclass
class _Pending:
    """A request on its way through the pipeline."""

    request: ParsedRequest
    choice: Choice
    accept: str
    readable: list[int] = field(default_factory=list)
    images: list[Input] = field(default_factory=list)
    keys: dict[int, bytes] = field(default_factory=dict)
    """Of the images whose scores are worth keeping, by their position."""
    known: dict[int, KnownScores] = field(default_factory=dict)
    """Of the images that need not be computed, which are empty."""
    errors: dict[int, EnsembleError] = field(default_factory=dict)
    result: Result | Response | None = None
    """What is to be said, or the refusal; None before, and where the samples refuse it."""
    rows: list[dict[str, Any]] | None = None
    """The result's predictions, where they were written together with those of other requests."""

    def charge(self, sample: Opened | KnownScores | EnsembleError) -> None:
        """Take what decoding a sample costs from the request's budget; beyond it, refuse."""
        if not isinstance(sample, Opened) or self.result is not None:
            return
        try:
            self.request.budget.take_pixels(sample.cost, sample.sample.where)
        except TooLargeError as error:
            self.result = _failure(self, error)

    @property
    def refused(self) -> bool:
        """Whether an unreadable sample refuses the whole request."""
        return refuses(self.errors, len(self.images), self.request.options)


class EnsembleService:
    """Answers requests with a loaded ensemble."""

    def __init__(
        self,
        spec: EnsembleSpec,
        runtime: Runtime,
        identity: Identity,
        offered: Catalogue,
        pool: ThreadPool = SERIAL,
    ) -> None:
        self.spec = spec
        self._decoder = Decoder(spec.limits, runtime, pool)
        self.identity = identity
        self._runtime = runtime
        most = spec.runtime.score_cache_mb * 1_000_000
        self.cache = ScoreCache(most, identity.archive or "") if most else None
        """Scores of earlier samples, if the spec wants that."""
        self._combiner = Combiner(spec, offered, identity.as_json())

    @property
    def max_parts(self) -> int:
        """How many parts one request may have."""
        return max_parts(self.spec.limits)

    def warm_up(self) -> None:
        """Compute a full batch, then smaller ones: kernels are made when a size is first seen."""
        full = min(self.spec.serving.batch_size, _WARM)
        images = trial_images(full)
        end = time.monotonic() + _WARM_SECONDS
        self._runtime.run(images)
        for samples in range(1, full):
            if time.monotonic() >= end:
                break
            self._runtime.run(images[:samples])

    def answer(
        self, requests: Sequence[RawRequest], *, arrived: float | None = None
    ) -> list[Response]:
        """One response for each request, in order; a bad request never fails its neighbours.

        Args:
            requests: the batch.
            arrived: when it reached the worker, in ``time.monotonic`` seconds; default now.
        """
        start = time.monotonic() if arrived is None else arrived
        end = start + _SHARE_OF_TIMEOUT * self.spec.serving.response_timeout_s
        accepted = self._accept_all(requests)
        self._decode_all([entry for entry in accepted if isinstance(entry, _Pending)], end)
        live = [
            entry
            for entry in accepted
            if isinstance(entry, _Pending) and entry.result is None and not entry.refused
        ]
        self._combine_lazily([entry for entry in live if entry.choice.lazy], end)
        self._combine_all([entry for entry in live if entry.result is None], start, end)
        _write_rows(live)
        return [entry if isinstance(entry, Response) else self._write(entry) for entry in accepted]

    def _combine_lazily(self, entries: Sequence[_Pending], end: float) -> None:
        """Requests of one policy together, each with no more members than its samples need.

        Where a member fails there is no result: with all members the deployment's rule for failed
        members holds.
        """
        groups: dict[tuple[object, ...], list[_Pending]] = {}
        for entry in entries:
            groups.setdefault(entry.choice.key, []).append(entry)
        for group in groups.values():
            images = [image for entry in group for image in entry.images]
            try:
                outcome = group[0].choice.run_lazily(self._runtime, images, end)
            except MemberError:
                continue
            except BusyError as error:
                for entry in group:
                    entry.result = _failure(entry, error)
                continue
            first = 0
            for entry in group:
                part = rows_of(outcome, slice(first, first + len(entry.images)))
                choice, request = entry.choice, entry.request
                self._conclude(entry, partial(choice.result_of, request, entry.readable, part))
                first += len(entry.images)

    def _combine_all(self, entries: Sequence[_Pending], start: float, end: float) -> None:
        """Each request by itself: how a sum is rounded may depend on how many samples there are."""
        try:
            outputs = self._run(entries, start, end)
        except MemberError as error:
            for entry in entries:
                entry.result = _failure(entry, error)
            return
        first = 0
        for entry in entries:
            rows = range(first, first + len(entry.images))
            choice, request = entry.choice, entry.request
            self._conclude(entry, partial(choice.result, request, entry.readable, rows, outputs))
            first = rows.stop

    def _run(self, live: Sequence[_Pending], start: float, end: float) -> MemberScores:
        images = [image for entry in live for image in entry.images]
        wanted: list[Sequence[bool]] = []
        deadlines: list[float | None] = []
        for entry in live:
            allowed = entry.choice.deadline_ms
            limit = None if allowed is None else start + allowed / 1000
            deadlines += [limit] * len(entry.images)
            wanted += [entry.choice.asked] * len(entry.images)
        # Not by repeat_interleave, which would wake torch's own threads for a handful of numbers.
        asked = torch.tensor(wanted, dtype=torch.bool).reshape(-1, len(self.spec.members)).T
        if self.cache is None:
            return self._runtime.run(images, asked=asked, deadlines=deadlines, end=end)
        return self._run_unknown(self.cache, live, images, asked, deadlines, end)

    def _run_unknown(
        self,
        cache: ScoreCache,
        live: Sequence[_Pending],
        images: Sequence[Input],
        asked: Tensor,
        deadlines: Sequence[float | None],
        end: float,
    ) -> MemberScores:
        """The scores of all samples; members run for those that are not known."""
        known: dict[int, KnownScores] = {}
        keys: dict[int, bytes] = {}
        first = 0
        for entry in live:
            known |= {first + position: found for position, found in entry.known.items()}
            keys |= {first + position: key for position, key in entry.keys.items()}
            first += len(entry.images)
        unknown = [column for column in range(len(images)) if column not in known]
        computed = self._runtime.run(
            [images[column] for column in unknown],
            asked=asked[:, unknown],
            deadlines=[deadlines[column] for column in unknown],
            end=end,
        )
        for position, column in enumerate(unknown):
            if column in keys:
                cache.keep(keys[column], computed, position)
        return with_known(computed, unknown, known)

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: members, labels, policies, options, limits."""
        spec = self.spec
        return {
            "model": self.identity.as_json(),
            "description": spec.description,
            "task": str(spec.task),
            "labels": list(spec.labels),
            "members": [
                {
                    "name": member.name,
                    "architecture": member.architecture,
                    "format": str(member.weights_format),
                    "voting_weight": member.voting_weight,
                }
                for member in spec.members
            ],
            "policies": self._combiner.catalogue.describe(),
            "options": describe_options(),
            "limits": asdict(spec.limits),
            "input_shape": self._runtime.input_shape,
            "device": str(self._runtime.device),
            "score_cache": None if self.cache is None else self.cache.describe(),
        }

    def _accept_all(self, requests: Sequence[RawRequest]) -> list[_Pending | Response]:
        """Requests on their way, or their refusals.

        What archives unpack to lies in memory until the batch is answered, so the archives of a
        batch unpack to no more than those of one request may; the others may be sent again.
        """
        accepted: list[_Pending | Response] = []
        unpacked_bytes = 0
        for request in requests:
            entry = self._accept(request)
            if isinstance(entry, _Pending) and (own := entry.request.budget.unpacked_bytes):
                if unpacked_bytes and unpacked_bytes + own > self.spec.limits.max_unpacked_bytes:
                    entry = _failure(entry, busy())
                else:
                    unpacked_bytes += own
            accepted.append(entry)
        return accepted

    def _accept(self, request: RawRequest) -> _Pending | Response:
        """The request on its way, or its refusal; no error of one reaches its neighbours."""
        try:
            return self._parse(request)
        except Exception:
            logger.exception("a request could not be parsed")
            return encode_error(unforeseen())

    def _parse(self, request: RawRequest) -> _Pending | Response:
        try:
            parsed = parse_request(request, self.spec.limits)
            check_frame_order(parsed)
            choice = self._combiner.choose(parsed.options)
        except RequestError as error:
            return encode_error(error, open_inference=is_open_inference(request))
        return _Pending(parsed, choice, request.headers.get("accept", ""))

    def _decode_all(self, entries: Sequence[_Pending], end: float) -> None:
        """The samples of all requests: headers, then pixels where the budget of a request allows.

        Args:
            entries: the requests.
            end: the time of ``time.monotonic`` from which on no further image is begun.
        """
        samples = [(entry, sample) for entry in entries for sample in entry.request.samples]
        known = [self._look_up(entry, sample) for entry, sample in samples]
        unknown = [
            sample
            for (_, sample), found in zip(samples, known, strict=True)
            if not isinstance(found, KnownScores)
        ]
        opened = iter(self._decoder.open_all(unknown))
        found_or_opened = [
            found if isinstance(found, KnownScores) else next(opened) for found in known
        ]
        for (entry, _), found in zip(samples, found_or_opened, strict=True):
            entry.charge(found)
        decoded = iter(
            self._decoder.decode_all(
                [
                    (found, entry.choice.members)
                    for (entry, _), found in zip(samples, found_or_opened, strict=True)
                    if isinstance(found, Opened) and entry.result is None
                ],
                end,
            )
        )
        for (entry, sample), key, found in zip(samples, known, found_or_opened, strict=True):
            if entry.result is not None:
                continue
            position = len(entry.images)
            image: Input | EnsembleError
            if isinstance(found, KnownScores):
                entry.known[position] = found
                image = torch.empty(0)
            else:
                image = next(decoded) if isinstance(found, Opened) else found
            if isinstance(image, EnsembleError):
                entry.errors[sample.index] = image
                continue
            entry.images.append(image)
            entry.readable.append(sample.index)
            if isinstance(key, bytes):
                entry.keys[position] = key

    def _conclude(self, entry: _Pending, combine: Callable[[], Result]) -> None:
        """Note the request's result; no error of one reaches its neighbours."""
        try:
            result = combine()
            entry.errors |= result.errors
            if refuses(entry.errors, len(result.answered), entry.request.options):
                entry.result = _refused(entry)
                return
            entry.result = replace(result, errors=entry.errors) if entry.errors else result
            max_bytes = self.spec.limits.max_response_bytes
            check_size(entry.result, max_bytes, infer=entry.request.infer)
        except EnsembleError as error:
            entry.result = _failure(entry, error)
        except Exception:
            logger.exception("a request could not be answered")
            entry.result = _failure(entry, unforeseen())

    def _write(self, entry: _Pending) -> Response:
        if not isinstance(entry.result, Result):
            return entry.result or _refused(entry)
        try:
            infer = entry.request.infer
            response = write(entry.result, accept=entry.accept, infer=infer, rows=entry.rows)
            max_bytes = self.spec.limits.max_response_bytes
            if len(response.body) > max_bytes:
                raise too_long(len(response.body), max_bytes)
            return response
        except EnsembleError as error:
            return _failure(entry, error)
        except Exception:
            logger.exception("a request could not be answered")
            return _failure(entry, unforeseen())

    def _look_up(self, entry: _Pending, sample: Sample) -> KnownScores | bytes | None:
        """Scores, or the key to keep them by.

        None where neither is of use: a lazy policy asks fewer members than there would be scores
        of, and a tensor is no file that comes again.
        """
        if self.cache is None or entry.choice.lazy or not isinstance(sample.data, bytes):
            return None
        key = self.cache.key(sample.data)
        return self.cache.find(key, entry.choice.members) or key


def _write_rows(entries: Sequence[_Pending]) -> None:
    """The predictions of requests answered in JSON, at once where clients want the same fields.

    Whatever goes wrong comes again in `_write`, and stays with its request there.
    """
    groups: dict[tuple[object, ...], list[tuple[_Pending, Result]]] = {}
    for entry in entries:
        result = entry.result
        if not isinstance(result, Result) or entry.request.infer is not None:
            continue
        if form_of(result, entry.accept) is Form.JSON:
            groups.setdefault(result.wanted, []).append((entry, result))
    for group in groups.values():
        with suppress(Exception):
            rows = predictions_of([result for _, result in group])
            for (entry, _), found in zip(group, rows, strict=True):
                entry.rows = found


def _refused(entry: _Pending) -> Response:
    """The refusal of a request whose samples failed; the first one gives the status."""
    failed = [entry.errors[index] for index in sorted(entry.errors)]
    return encode_error(failed[0], failed, open_inference=entry.request.infer is not None)


def _failure(entry: _Pending, error: EnsembleError) -> Response:
    return encode_error(error, open_inference=entry.request.infer is not None)
