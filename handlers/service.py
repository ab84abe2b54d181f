"""The stages of a batch of requests: accept, decode, run, combine, answer.

Each stage turns the requests that are still on their way into the next type, or refuses them with a
response. No type of TorchServe appears here: the same service answers in a worker, in a test and in
a notebook (`torchserve_ensemble.Ensemble`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from .answers.encoding import Response, encode_error
from .answers.json_answers import predictions_of
from .answers.response_formats import check_size, response_format, too_long, write
from .base.errors import (
    BusyError,
    EnsembleError,
    MemberError,
    RequestError,
    busy,
    unforeseen,
)
from .base.threads import SERIAL, ThreadPool
from .decisions.choice import Choice, Chooser
from .decisions.combining import Combination, refuses
from .decisions.result import Result
from .decisions.sequences import check_frame_order
from .decoding.batch import DecodedRequest, DecodingTask, decode_batch
from .decoding.decoder import Decoder
from .engine.runtime import Runtime
from .engine.score_cache import ScoreCache
from .inputs.example_inputs import trial_images
from .policies import Catalogue, Outcome, rows_of
from .requests.options import ResponseFormat, describe_options
from .requests.parsing import (
    ParsedRequest,
    RawRequest,
    is_open_inference,
    max_parts,
    parse_request,
)
from .running import RunningTask, inputs_of, run_lazily, run_members
from .spec import EnsembleSpec

logger = logging.getLogger(__name__)

Stage = TypeVar("Stage")
Next = TypeVar("Next")

_SHARE_OF_TIMEOUT = 0.5
"""Share of the response timeout after which a batch begins nothing new.

TorchServe ends a worker that is silent for longer than that timeout, and with it every request of
the batch. What is left then is refused, and may be sent again.
"""

_MAX_WARM_UP_SAMPLES = 32
"""The largest batch that a worker computes before it is ready."""

_MAX_WARM_UP_SECONDS = 1.0
"""After so long, kernels of the remaining batch sizes are left to the first requests."""


@dataclass(frozen=True)
class Identity:
    """Which model answers: its registered name, its version, and its archive's digest."""

    name: str
    version: str
    archive: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """As it stands in every answer."""
        return {"name": self.name, "version": self.version, "archive": self.archive}


@dataclass(frozen=True)
class Accepted:
    """A request whose parts and options were read and checked.

    Attributes:
        request: its samples and options.
        choice: policy, members and thresholds that it chose.
        accept: its Accept header.
    """

    request: ParsedRequest
    choice: Choice
    accept: str

    def refusal(self, error: EnsembleError) -> Response:
        """The response that refuses the request."""
        return encode_error(error, open_inference=self.request.infer is not None)

    def refusal_by_samples(self, errors: Mapping[int, EnsembleError]) -> Response:
        """The response that refuses the request because samples failed; the first gives the status.

        Args:
            errors: position of the sample -> why it failed.
        """
        failed = [errors[index] for index in sorted(errors)]
        return encode_error(failed[0], failed, open_inference=self.request.infer is not None)


@dataclass(frozen=True)
class Decoded:
    """A request whose samples were decoded, or have scores in the cache."""

    accepted: Accepted
    decoded: DecodedRequest

    @property
    def readable(self) -> tuple[int, ...]:
        """Positions in the request of the samples that could be decoded."""
        return tuple(sample.index for sample in self.decoded.samples)

    @property
    def running(self) -> RunningTask:
        """What the members have to do for it."""
        return RunningTask(self.decoded.samples, self.accepted.choice)


@dataclass(frozen=True)
class Combined:
    """A request whose result is there and waits to be written."""

    accepted: Accepted
    result: Result


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
        """Put a service together; `deployment.load_service` does so from a spec and its files.

        Args:
            spec: the ensemble.
            runtime: its loaded members.
            identity: what answers call the model.
            offered: the policies that clients may choose.
            pool: decodes images.
        """
        self.spec = spec
        self.identity = identity
        self._decoder = Decoder(spec.limits, runtime, pool)
        self._runtime = runtime
        max_bytes = spec.runtime.score_cache_mb * 1_000_000
        self.cache = ScoreCache(max_bytes, identity.archive or "") if max_bytes else None
        """Scores of earlier samples, if the spec wants them kept."""
        self._chooser = Chooser(spec, offered)

    @property
    def max_parts(self) -> int:
        """How many parts one request may have."""
        return max_parts(self.spec.limits)

    def warm_up(self) -> None:
        """Compute a full batch, then smaller ones: kernels are made when a size is first seen."""
        largest = min(self.spec.serving.batch_size, _MAX_WARM_UP_SAMPLES)
        images = trial_images(largest)
        end = time.monotonic() + _MAX_WARM_UP_SECONDS
        self._runtime.run(images)
        for num_samples in range(1, largest):
            if time.monotonic() >= end:
                break
            self._runtime.run(images[:num_samples])

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
        accepted = self._accept(requests)
        decoded = _advance(accepted, partial(self._decode, end=end))
        combined = _advance(decoded, partial(self._run_and_combine, start=start, end=end))
        return [
            response
            for response in _advance(combined, self._write)
            if isinstance(response, Response)
        ]

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
            "policies": self._chooser.catalogue.describe(),
            "options": describe_options(),
            "limits": asdict(spec.limits),
            "input_shape": self._runtime.input_shape,
            "device": str(self._runtime.device),
            "score_cache": None if self.cache is None else self.cache.describe(),
        }

    def _accept(self, requests: Sequence[RawRequest]) -> list[Accepted | Response]:
        """Read and check the requests.

        What archives unpack to lies in memory until the batch is answered, so the archives of a
        batch unpack to no more than those of one request may; the others may be sent again.
        """
        accepted: list[Accepted | Response] = []
        unpacked_bytes = 0
        for request in requests:
            entry = self._accept_one(request)
            if isinstance(entry, Accepted) and (own := entry.request.budget.unpacked_bytes):
                if unpacked_bytes and unpacked_bytes + own > self.spec.limits.max_unpacked_bytes:
                    entry = entry.refusal(busy())
                else:
                    unpacked_bytes += own
            accepted.append(entry)
        return accepted

    def _accept_one(self, request: RawRequest) -> Accepted | Response:
        try:
            parsed = parse_request(request, self.spec.limits)
            check_frame_order(parsed)
            choice = self._chooser.choose(parsed.options)
        except RequestError as error:
            return encode_error(error, open_inference=is_open_inference(request))
        except Exception:
            logger.exception("a request could not be parsed")
            return encode_error(unforeseen())
        return Accepted(parsed, choice, request.headers.get("accept", ""))

    def _decode(self, entries: Sequence[Accepted], *, end: float) -> list[Decoded | Response]:
        tasks = [
            DecodingTask(entry.request, entry.choice.members, uses_cache=not entry.choice.lazy)
            for entry in entries
        ]
        results = decode_batch(tasks, self._decoder, self.cache, end)
        decoded: list[Decoded | Response] = []
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, EnsembleError):
                decoded.append(entry.refusal(result))
            elif refuses(result.errors, len(result.samples), entry.request.options):
                decoded.append(entry.refusal_by_samples(result.errors))
            else:
                decoded.append(Decoded(entry, result))
        return decoded

    def _run_and_combine(
        self, entries: Sequence[Decoded], *, start: float, end: float
    ) -> list[Combined | Response]:
        """Run the members and make each request's result, lazily where its policy allows that.

        Where a member fails a lazy policy gives no outcome. All members then run for its requests,
        and the deployment's rule for failed members holds.
        """
        outcomes = self._outcomes(entries, end)
        eager = [entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome is None]
        by_scores = iter(self._combine_scores(eager, start, end))
        combined: list[Combined | Response] = []
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is None:
                combined.append(next(by_scores))
            elif isinstance(outcome, BusyError):
                combined.append(entry.accepted.refusal(outcome))
            else:
                combination = self._combination(entry)
                combined.append(self._concluded(entry, partial(combination.of_outcome, outcome)))
        return combined

    def _outcomes(self, entries: Sequence[Decoded], end: float) -> list[Outcome | BusyError | None]:
        """For each request what its policy decides lazily; None where all members have to run.

        Requests of one policy run together, each with no more members than its samples need.
        """
        groups: dict[tuple[object, ...], list[int]] = {}
        for position, entry in enumerate(entries):
            if entry.accepted.choice.lazy:
                groups.setdefault(entry.accepted.choice.key, []).append(position)
        outcomes: list[Outcome | BusyError | None] = [None] * len(entries)
        for positions in groups.values():
            choice = entries[positions[0]].accepted.choice
            samples = [s for position in positions for s in entries[position].decoded.samples]
            try:
                outcome = run_lazily(choice, inputs_of(samples), self._runtime, end=end)
            except MemberError:
                continue
            except BusyError as error:
                for position in positions:
                    outcomes[position] = error
                continue
            first = 0
            for position in positions:
                stop = first + len(entries[position].decoded.samples)
                outcomes[position] = rows_of(outcome, slice(first, stop))
                first = stop
        return outcomes

    def _combine_scores(
        self, entries: Sequence[Decoded], start: float, end: float
    ) -> Iterator[Combined | Response]:
        """Run the members for all requests together, and combine for each request by itself.

        Combined together, requests could get other scores than alone: how a sum is rounded may
        depend on how many samples there are.
        """
        tasks = [entry.running for entry in entries]
        try:
            outputs = run_members(tasks, self._runtime, self.cache, start=start, end=end)
        except MemberError as error:
            yield from (entry.accepted.refusal(error) for entry in entries)
            return
        first = 0
        for entry in entries:
            columns = range(first, first + len(entry.decoded.samples))
            combination = self._combination(entry)
            yield self._concluded(entry, partial(combination.of_scores, columns, outputs))
            first = columns.stop

    def _combination(self, entry: Decoded) -> Combination:
        accepted = entry.accepted
        model = self.identity.as_json()
        return Combination(accepted.choice, accepted.request, entry.readable, model)

    def _concluded(self, entry: Decoded, combine: Callable[[], Result]) -> Combined | Response:
        """The request with its result, or its refusal; no error of one reaches its neighbours."""
        accepted = entry.accepted
        try:
            result = combine()
            errors = {**entry.decoded.errors, **result.errors}
            if refuses(errors, len(result.answered), accepted.request.options):
                return accepted.refusal_by_samples(errors)
            result = replace(result, errors=errors) if errors else result
            max_bytes = self.spec.limits.max_response_bytes
            check_size(result, max_bytes, infer=accepted.request.infer)
        except EnsembleError as error:
            return accepted.refusal(error)
        except Exception:
            logger.exception("a request could not be answered")
            return accepted.refusal(unforeseen())
        return Combined(accepted, result)

    def _write(self, entries: Sequence[Combined]) -> list[Response]:
        predictions = _predictions_together(entries)
        return [
            self._write_one(entry, rows) for entry, rows in zip(entries, predictions, strict=True)
        ]

    def _write_one(self, entry: Combined, rows: list[dict[str, Any]] | None) -> Response:
        accepted, max_bytes = entry.accepted, self.spec.limits.max_response_bytes
        try:
            response = write(
                entry.result, accept=accepted.accept, infer=accepted.request.infer, rows=rows
            )
            if len(response.body) > max_bytes:
                raise too_long(len(response.body), max_bytes)
        except EnsembleError as error:
            return accepted.refusal(error)
        except Exception:
            logger.exception("a request could not be answered")
            return accepted.refusal(unforeseen())
        return response


def _advance(
    entries: Sequence[Stage | Response],
    stage: Callable[[Sequence[Stage]], Sequence[Next | Response]],
) -> list[Next | Response]:
    """Run a stage on the requests that are not answered yet; the others keep their response.

    Args:
        entries: all requests of the batch, in order.
        stage: one result for each request that it is given, in order.
    """
    advanced = iter(stage([entry for entry in entries if not isinstance(entry, Response)]))
    return [entry if isinstance(entry, Response) else next(advanced) for entry in entries]


def _predictions_together(entries: Sequence[Combined]) -> list[list[dict[str, Any]] | None]:
    """For each request answered in JSON its predictions; None for the others.

    Requests whose clients want the same fields are written at once, which takes less time.
    Whatever goes wrong comes again when the request is written alone, and stays with it there.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, entry in enumerate(entries):
        result, accepted = entry.result, entry.accepted
        if accepted.request.infer is None and (
            response_format(result, accepted.accept) is ResponseFormat.JSON
        ):
            groups.setdefault(result.written_together_key, []).append(position)
    predictions: list[list[dict[str, Any]] | None] = [None] * len(entries)
    for positions in groups.values():
        with suppress(Exception):
            rows = predictions_of([entries[position].result for position in positions])
            for position, own in zip(positions, rows, strict=True):
                predictions[position] = own
    return predictions
