"""The stages of a batch: accept, decode, run and combine, answer.

Every stage takes the requests in order and returns one state for each of them (see `stages`). A
request that a stage refuses passes the later stages unchanged, and all other requests of the batch
are answered. No type of TorchServe appears here: the same service answers in a worker, in a test,
in ``ts-ensemble predict --local`` and in `torchserve_ensemble.Ensemble`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from .answers.encoding import Response, encode_error
from .answers.json_answers import predictions_of
from .answers.writing import check_size, response_format, too_large, write
from .archive.self_test import MAX_DESCRIBED_BYTES, SelfTest
from .base.errors import (
    BusyError,
    EnsembleError,
    MemberError,
    RequestError,
    busy,
    unforeseen,
)
from .base.threads import SERIAL, ThreadPool
from .decisions.choosing import Chooser
from .decisions.combining import combine, is_refused, result_of_outcome
from .decisions.result import SIDE_KEY, Result
from .decisions.sequences import check_frame_order
from .decoding.batch import DecodedSamples, SamplesToDecode, decode_batch
from .decoding.decoder import Decoder
from .engine.runtime import Runtime
from .engine.score_cache import ScoreCache
from .observability.timeline import BatchTimeline, StageName
from .policies import Catalogue, rows_of
from .recording import Recorder
from .requests.options import ResponseFormat, describe_options
from .requests.parsing import is_open_inference, parse_request
from .requests.raw_request import RawRequest, max_parts
from .rollout.canary import Canary, Side
from .rollout.shadow import Shadow
from .running import run_chosen_members, run_lazily
from .spec import EnsembleSpec
from .stages import Accepted, Answered, Decoded, Refused

logger = logging.getLogger(__name__)

_COMPUTING_SHARE_OF_TIMEOUT = 0.5
"""Share of the response timeout after which a batch begins no further image or micro-batch.

TorchServe ends a worker that does not answer within the timeout, and its whole batch fails.
Samples that have not begun by half of the timeout are refused instead; the client may send them
again.
"""

_SIDE_HEADER = "x-ensemble-rollout"
"""Header of a canary's answers that says which side answered, for formats without `model`."""

_MAX_WARM_UP_SAMPLES = 32
"""Largest batch that a worker computes before it reports that it is ready."""

_MAX_WARM_UP_SECONDS = 1.0
"""Warm-up stops after this time; the first requests then build the kernels that are missing."""


@dataclass(frozen=True)
class Identity:
    """The model that answers, as each answer names it.

    Attributes:
        name: name under which the model is registered.
        version: version of the model.
        archive: digest of its archive; None if it was loaded from a spec.
    """

    name: str
    version: str
    archive: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """Return the identity as JSON for answers."""
        return {"name": self.name, "version": self.version, "archive": self.archive}


class EnsembleService:
    """Answers batches of requests with a loaded ensemble.

    Attributes:
        spec: the ensemble's spec.
        identity: the model that answers.
        cache: scores of recently sent images; None if the spec gives the cache no memory.
        self_test: probes with the answers at build; None if the archive has none.
        recorder: counts and measures what happens to the batches.
        shadow: compares a candidate's decisions with the answers; None if the spec has no shadow.
    """

    def __init__(
        self,
        spec: EnsembleSpec,
        runtime: Runtime,
        identity: Identity,
        catalogue: Catalogue,
        pool: ThreadPool = SERIAL,
        self_test: SelfTest | None = None,
        *,
        canary: Canary | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        """Put the stages of a loaded ensemble together.

        Args:
            spec: the ensemble's spec.
            runtime: its loaded members.
            identity: the model that answers.
            catalogue: the policies that clients may choose.
            pool: threads that decode images.
            self_test: probes with the answers at build.
            canary: chooses for each request which side answers it; None if the spec has none.
            shadow: compares a candidate's decisions with the answers; None if the spec has none.
        """
        self.spec = spec
        self.shadow = shadow
        self._canary = canary
        self.self_test = self_test
        self._decoder = Decoder(spec.limits, runtime, pool)
        self.identity = identity
        self._runtime = runtime
        cache_bytes = spec.runtime.score_cache_mb * 1_000_000
        self.cache = ScoreCache(cache_bytes, identity.archive or "") if cache_bytes else None
        self._chooser = Chooser(spec, catalogue, identity.as_json())
        self.recorder = Recorder(spec, self.cache, runtime.device)

    @property
    def max_parts(self) -> int:
        """Largest number of parts that one request may have."""
        return max_parts(self.spec.limits)

    def warm_up(self) -> None:
        """Compute a full batch, then each smaller one: every batch size needs its own kernels."""
        full = min(self.spec.serving.batch_size, _MAX_WARM_UP_SAMPLES)
        images = self._runtime.example_inputs(full)
        end = time.monotonic() + _MAX_WARM_UP_SECONDS
        self._runtime.run(images)
        for num_samples in range(1, full):
            if time.monotonic() >= end:
                break
            self._runtime.run(images[:num_samples])

    def answer(
        self, requests: Sequence[RawRequest], *, arrived: float | None = None
    ) -> list[Response]:
        """Answer each request of a batch, in order; a request that is refused fails no other.

        Args:
            requests: the requests of the batch.
            arrived: time at which the batch reached the worker, in ``time.monotonic`` seconds; by
                default the current time.
        """
        if arrived is None:
            arrived = time.monotonic()
        if self.shadow is not None:
            self.shadow.hold()
        end = arrived + _COMPUTING_SHARE_OF_TIMEOUT * self.spec.serving.response_timeout_s
        timeline = BatchTimeline(arrived)
        with timeline.stage(StageName.PARSE):
            accepted = self._accept_all(requests)
        with timeline.stage(StageName.DECODE):
            decoded = self._decode_all(accepted, end)
        answered = self._run_and_combine_all(decoded, timeline, end)
        with timeline.stage(StageName.WRITE):
            responses = self._write_all(answered)
        self.recorder.record(timeline, requests, answered, responses)
        if self.shadow is not None:
            self.shadow.offer(requests, decoded, answered)
        return responses

    def describe(self) -> dict[str, Any]:
        """Return members, labels, policies, options and limits as JSON for a client."""
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
            "rollout": None if spec.rollout is None else asdict(spec.rollout),
            "score_cache": None if self.cache is None else self.cache.describe(),
            "self_test": None
            if self.self_test is None
            else self.self_test.to_json(max_bytes=MAX_DESCRIBED_BYTES),
        }

    def _accept_all(self, requests: Sequence[RawRequest]) -> list[Accepted | Refused]:
        """Parse all requests.

        Unpacked archives stay in memory until the batch is answered. Therefore the archives of a
        whole batch may unpack to no more bytes than those of one request; requests beyond that are
        refused, and the client may send them again.
        """
        accepted: list[Accepted | Refused] = []
        batch_bytes = 0
        for request in requests:
            state = self._accept(request)
            if isinstance(state, Accepted) and (size := state.request.budget.unpacked_bytes):
                if batch_bytes and batch_bytes + size > self.spec.limits.max_unpacked_bytes:
                    state = state.refused(busy())
                else:
                    batch_bytes += size
            accepted.append(state)
        return accepted

    def _accept(self, request: RawRequest) -> Accepted | Refused:
        """Parse one request; an unforeseen error is logged and refuses this request alone."""
        try:
            return self._parse(request)
        except Exception:
            logger.exception("a request could not be parsed")
            return Refused(encode_error(unforeseen()))

    def _parse(self, request: RawRequest) -> Accepted | Refused:
        """Parse one request and check its options."""
        try:
            parsed = parse_request(request, self.spec.limits)
            check_frame_order(parsed)
            chooser = None
            if self._canary is not None:
                chooser = self._canary.chooser(parsed.options, request.id)
            choice = (chooser or self._chooser).choose(parsed.options)
        except RequestError as error:
            return Refused(encode_error(error, open_inference=is_open_inference(request)))
        return Accepted(parsed, choice, request.headers.get("accept", ""))

    def _decode_all(
        self, states: Sequence[Accepted | Refused], end: float
    ) -> list[Decoded | Refused]:
        """Decode the samples of all requests together, as far as each request's budget allows."""
        to_decode = [
            SamplesToDecode(
                samples=state.request.samples,
                members=self._canary.members
                if self._canary is not None and state.choice.chooser.is_candidate
                else state.choice.members,
                budget=state.request.budget,
                # A lazy request runs fewer members than a cache entry needs.
                may_use_cache=not state.choice.lazy,
            )
            for state in states
            if isinstance(state, Accepted)
        ]
        decoded = iter(decode_batch(to_decode, self._decoder, self.cache, end))
        return [
            _check_decoded(state, next(decoded)) if isinstance(state, Accepted) else state
            for state in states
        ]

    def _run_and_combine_all(
        self, states: Sequence[Decoded | Refused], timeline: BatchTimeline, end: float
    ) -> list[Answered | Refused]:
        """Run members and combine their scores, first for lazy requests, then for all others."""
        finished: dict[int, Answered | Refused] = {}
        decoded: dict[int, Decoded] = {}
        for position, state in enumerate(states):
            if isinstance(state, Refused):
                finished[position] = state
            else:
                decoded[position] = state
        lazy = {position: each for position, each in decoded.items() if each.accepted.choice.lazy}
        finished |= self._answer_lazily(lazy, timeline, end)
        others = {position: each for position, each in decoded.items() if position not in finished}
        finished |= self._answer_with_all_members(others, timeline, end)
        if self._canary is not None:
            finished |= self._fall_back(self._canary, decoded, finished, timeline, end)
        return [finished[position] for position in range(len(states))]

    def _fall_back(
        self,
        canary: Canary,
        decoded: Mapping[int, Decoded],
        finished: Mapping[int, Answered | Refused],
        timeline: BatchTimeline,
        end: float,
    ) -> dict[int, Answered | Refused]:
        """Let the current ensemble answer the requests on which the candidate failed.

        Args:
            canary: the two sides.
            decoded: position in the batch -> request.
            finished: position in the batch -> what became of it.
            timeline: where the time of the members and of the policy is recorded.
            end: the time of ``time.monotonic`` from which on no further micro-batch begins.
        """
        chooser = canary.choosers[Side.FALLBACK]
        failed: dict[int, Decoded] = {}
        for position, request in decoded.items():
            accepted, state = request.accepted, finished[position]
            has_failed = isinstance(state, Refused) or len(state.result.errors) > len(
                request.samples.errors
            )
            if has_failed and accepted.choice.chooser.is_candidate:
                choice = chooser.choose(accepted.request.options)
                failed[position] = replace(request, accepted=replace(accepted, choice=choice))
        return self._answer_with_all_members(failed, timeline, end) if failed else {}

    def _answer_lazily(
        self, requests: Mapping[int, Decoded], timeline: BatchTimeline, end: float
    ) -> dict[int, Answered | Refused]:
        """Answer lazy requests; requests with equal choices are run and combined together.

        Args:
            requests: position in the batch -> request.
            timeline: where the time of the members and of the policy is recorded.
            end: the time of ``time.monotonic`` from which on no further micro-batch begins.

        Returns:
            Position in the batch -> answer. A request for which a member failed is left out: it
            must be answered with all members, by the deployment's rule for failed members.
        """
        groups: dict[tuple[object, ...], dict[int, Decoded]] = {}
        for position, request in requests.items():
            groups.setdefault(request.accepted.choice.group_key, {})[position] = request
        finished: dict[int, Answered | Refused] = {}
        for group in groups.values():
            choice = next(iter(group.values())).accepted.choice
            inputs = [each for request in group.values() for each in request.samples.inputs]
            try:
                # The policy decides after each member which one runs next, so that its time is
                # part of this stage.
                with timeline.stage(StageName.MEMBERS):
                    outcome = run_lazily(self._runtime, choice, inputs, end, timeline.calls)
            except MemberError:
                continue
            except BusyError as error:
                finished |= _all_refused(group, error)
                continue
            first = 0
            for position, request in group.items():
                accepted, samples = request.accepted, request.samples
                rows = slice(first, first + len(samples.inputs))
                finished[position] = self._conclude(
                    request,
                    partial(
                        result_of_outcome,
                        accepted.choice,
                        accepted.request,
                        samples.indices,
                        rows_of(outcome, rows),
                    ),
                )
                first = rows.stop
        return finished

    def _answer_with_all_members(
        self, requests: Mapping[int, Decoded], timeline: BatchTimeline, end: float
    ) -> dict[int, Answered | Refused]:
        """Run all chosen members on the samples of all requests, then combine request by request.

        The requests are not combined together, because the rounding of a sum can depend on how many
        samples are summed at once.

        Args:
            requests: position in the batch -> request.
            timeline: when the batch arrived, and where the time of its stages is recorded.
            end: the time of ``time.monotonic`` from which on no further micro-batch begins.
        """
        try:
            with timeline.stage(StageName.MEMBERS):
                outputs = run_chosen_members(
                    self._runtime,
                    self.cache,
                    list(requests.values()),
                    arrived=timeline.arrived,
                    end=end,
                )
        except MemberError as error:
            return dict(_all_refused(requests, error))
        timeline.calls += outputs.calls
        self.recorder.count_missing(outputs)
        finished: dict[int, Answered | Refused] = {}
        first = 0
        with timeline.stage(StageName.POLICY):
            for position, request in requests.items():
                accepted, samples = request.accepted, request.samples
                rows = range(first, first + len(samples.inputs))
                finished[position] = self._conclude(
                    request,
                    partial(
                        combine, accepted.choice, accepted.request, samples.indices, rows, outputs
                    ),
                )
                first = rows.stop
        return finished

    def _conclude(
        self, request: Decoded, combine_request: Callable[[], Result]
    ) -> Answered | Refused:
        """Combine one request; refuse it if its samples failed or its answer would be too long."""
        accepted = request.accepted
        parsed = accepted.request
        try:
            result = combine_request()
            errors = {**request.samples.errors, **result.errors}
            if is_refused(errors, len(result.answered), parsed.options):
                return _refused_by_samples(accepted, errors)
            if errors:
                result = replace(result, errors=errors)
            check_size(result, self.spec.limits.max_response_bytes, infer=parsed.infer)
            return Answered(accepted, result)
        except EnsembleError as error:
            return accepted.refused(error)
        except Exception:
            logger.exception("a request could not be answered")
            return accepted.refused(unforeseen())

    def _write_all(self, states: Sequence[Answered | Refused]) -> list[Response]:
        """Write the response of each request."""
        predictions = _write_predictions_together(states)
        return [
            self._write(state, predictions.get(position))
            if isinstance(state, Answered)
            else state.response
            for position, state in enumerate(states)
        ]

    def _write(self, state: Answered, predictions: list[dict[str, Any]] | None) -> Response:
        """Write the response of one request, with its JSON predictions if they exist already."""
        accepted, max_bytes = state.accepted, self.spec.limits.max_response_bytes
        try:
            response = write(
                state.result,
                accept=accepted.accept,
                infer=accepted.request.infer,
                predictions=predictions,
            )
            if len(response.body) > max_bytes:
                raise too_large(len(response.body), max_bytes)
            side = state.result.model.get(SIDE_KEY)
            if side:
                response = replace(response, headers={**response.headers, _SIDE_HEADER: side})
            return response
        except EnsembleError as error:
            return accepted.refused(error).response
        except Exception:
            logger.exception("a request could not be answered")
            return accepted.refused(unforeseen()).response


def _check_decoded(
    accepted: Accepted, decoded: DecodedSamples | EnsembleError
) -> Decoded | Refused:
    """Make the state of a request after decoding.

    A request is refused if it exceeds its budget, or because of samples that are unreadable.
    """
    if isinstance(decoded, EnsembleError):
        return accepted.refused(decoded)
    if is_refused(decoded.errors, len(decoded.inputs), accepted.request.options):
        return _refused_by_samples(accepted, decoded.errors)
    return Decoded(accepted, decoded)


def _all_refused(requests: Mapping[int, Decoded], error: EnsembleError) -> dict[int, Refused]:
    """Refuse several requests, by position in the batch, with the same error."""
    return {position: each.accepted.refused(error) for position, each in requests.items()}


def _write_predictions_together(
    states: Sequence[Answered | Refused],
) -> dict[int, list[dict[str, Any]]]:
    """Write the predictions of all JSON answers that have the same fields together.

    This is faster than writing one answer at a time.

    Returns:
        Position in the batch -> predictions. If writing several answers together fails, they are
        left out, and `EnsembleService._write` writes each of them alone.
    """
    groups: dict[tuple[object, ...], dict[int, Result]] = {}
    for position, state in enumerate(states):
        if isinstance(state, Refused) or state.accepted.request.infer is not None:
            continue
        if response_format(state.result, state.accepted.accept) is ResponseFormat.JSON:
            groups.setdefault(state.result.json_row_key, {})[position] = state.result
    predictions: dict[int, list[dict[str, Any]]] = {}
    for group in groups.values():
        with suppress(Exception):
            predictions |= zip(group, predictions_of(list(group.values())), strict=True)
    return predictions


def _refused_by_samples(accepted: Accepted, errors: Mapping[int, EnsembleError]) -> Refused:
    """Refuse a request because of its samples; the first failed sample gives the status."""
    failed = [errors[index] for index in sorted(errors)]
    return accepted.refused(failed[0], failed)
