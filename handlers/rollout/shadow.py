"""Compares a candidate's decisions with the answers, after these were handed back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..decisions.choosing import Chooser
from ..decisions.combining import combine
from ..decisions.result import Result
from ..engine.member_scores import MemberScores, State
from ..frontend.request_log import DecisionLog
from ..inputs.resolving import group, resolve
from ..observability import catalogue
from ..observability.meter import Meter
from ..policies import Catalogue
from ..requests.raw_request import RawRequest
from ..spec import EnsembleSpec
from ..stages import Answered, Decoded, Refused
from .canary import leaves_choice_open
from .candidate_process import CandidateProcess, NotRunningError
from .comparison import compare, decisions_of
from .transfer import inputs_to_message, scores_from_message

logger = logging.getLogger(__name__)

_DEADLINES_UNTIL_HUNG = 10
"""The candidate's process is ended if it takes longer than this many deadlines for a batch."""


def new_members(spec: EnsembleSpec) -> tuple[int, ...]:
    """Return the positions of the members that only the candidate has."""
    current = set(spec.current_members)
    return tuple(each for each in spec.candidate_members if each not in current)


@dataclass(frozen=True)
class _AnsweredRequest:
    """A request that takes part.

    Attributes:
        decoded: the request and its decoded samples.
        result: what its client was answered.
        id: identifier that TorchServe gave to the request.
    """

    decoded: Decoded
    result: Result
    id: str

    @property
    def num_samples(self) -> int:
        """Number of samples that were answered."""
        return len(self.result.answered)

    @property
    def is_complete(self) -> bool:
        """Whether the inputs and the current members' scores of all samples exist.

        The score cache keeps scores and no inputs; lazy members leave no ballot.
        """
        return not self.decoded.samples.cached and all(
            group.ballot is not None for group in self.result.groups
        )


class Shadow:
    """Runs the candidate on batches whose answers were handed back, on a thread of its own.

    A batch waits at most until the one before it is compared. While one waits, further batches are
    dropped, so that memory is bounded and the thread never falls behind.
    """

    def __init__(self, spec: EnsembleSpec, policies: Catalogue) -> None:
        """Prepare the comparison; nothing is compared before `start`.

        Args:
            spec: an ensemble whose `rollout` is a shadow.
            policies: the candidate's policies.
        """
        assert spec.rollout is not None
        self.spec = spec
        self._deadline_seconds = spec.rollout.deadline_ms / 1000
        self._chooser = Chooser(spec, policies, {}, is_candidate=True)
        self._process: CandidateProcess | None = None
        self._meter: Meter | None = None
        self._on_counted: Callable[[], None] = lambda: None
        self._log: DecisionLog | None = None
        self._lock = threading.Lock()
        self._waiting: list[_AnsweredRequest] | None = None
        self._handed_back = threading.Event()

    @property
    def is_idle(self) -> bool:
        """Whether no batch is compared or waits to be compared."""
        with self._lock:
            return self._waiting is None

    def start(
        self,
        meter: Meter,
        on_counted: Callable[[], None],
        command: Sequence[str],
        log: DecisionLog | None = None,
    ) -> None:
        """Start the thread, and the process of the new members if there are any.

        Args:
            meter: where comparisons are counted.
            on_counted: called when something was counted.
            command: program and arguments of the process; see `CandidateProcess`.
            log: where the decisions are written; None: nowhere.
        """
        self._meter, self._on_counted, self._log = meter, on_counted, log
        if new_members(self.spec):
            startup_seconds = self.spec.serving.startup_timeout_s
            self._process = CandidateProcess(command, startup_seconds=startup_seconds)
        threading.Thread(target=self._run, name="shadow", daemon=True).start()

    def offer(
        self,
        requests: Sequence[RawRequest],
        decoded: Sequence[Decoded | Refused],
        answered: Sequence[Answered | Refused],
    ) -> None:
        """Keep a batch to compare it later. It takes microseconds, and raises nothing.

        Args:
            requests: the requests of the batch.
            decoded: the same requests after decoding.
            answered: the same requests, answered.
        """
        if self._meter is None:
            return
        batch = [
            _AnsweredRequest(request, answer.result, raw.id)
            for raw, request, answer in zip(requests, decoded, answered, strict=True)
            if isinstance(request, Decoded)
            and isinstance(answer, Answered)
            and leaves_choice_open(request.accepted.request.options)
        ]
        if not batch:
            return
        with self._lock:
            is_free = self._waiting is None
            if is_free:
                self._waiting = batch
        if not is_free:
            self._drop(batch, "busy")

    def hold(self) -> None:
        """Stop the new members: the worker computes answers."""
        if self._process is not None:
            self._process.pause()

    def release(self) -> None:
        """Let the new members go on, and the waiting batch be compared: answers were handed back.

        The worker waits for requests.
        """
        if self._process is not None:
            self._process.resume()
        if self._waiting is not None:
            self._handed_back.set()

    def _run(self) -> None:
        """Compare one batch after the other; the thread never ends."""
        if self._process is not None:
            self._guarded(self._process.ensure_running)
        while True:
            self._handed_back.wait()
            self._handed_back.clear()
            batch = self._waiting
            if batch is None:
                continue
            self._guarded(lambda batch=batch: self._compare(batch))  # type: ignore[misc]
            with self._lock:
                self._waiting = None
            self._on_counted()

    def _guarded(self, function: Callable[[], None]) -> None:
        """Call a function; whatever it raises is logged, and the thread goes on."""
        try:
            function()
        except NotRunningError:
            pass  # It was logged.
        except Exception:
            logger.exception("a batch could not be compared with the candidate")

    def _compare(self, batch: Sequence[_AnsweredRequest]) -> None:
        """Run the candidate on a batch and count how its decisions differ from the answers."""
        assert self._meter is not None
        complete = [request for request in batch if request.is_complete]
        self._drop([request for request in batch if not request.is_complete], "incomplete")
        if not complete:
            return
        started = time.monotonic()
        try:
            new_scores = self._new_scores(complete)
        except TimeoutError:
            self._drop(complete, "late")
            assert self._process is not None
            self._process.recover(_DEADLINES_UNTIL_HUNG * self._deadline_seconds)
            return
        except NotRunningError:
            self._drop(complete, "not_running")
            return
        first = 0
        for request in complete:
            rows = slice(first, first + len(request.decoded.samples.inputs))
            try:
                self._count(request, self._decide(request, new_scores, rows))
            except Exception:
                logger.exception("the candidate could not decide a request")
                self._meter.add(catalogue.CANDIDATE_FAILURES, request.num_samples)
            first = rows.stop
        self._meter.observe(catalogue.CANDIDATE_SECONDS, time.monotonic() - started)

    def _new_scores(self, batch: Sequence[_AnsweredRequest]) -> MemberScores | None:
        """Compute the new members on all samples of a batch; None if there are no new members.

        Raises:
            TimeoutError: the deadline passed.
            NotRunningError: the process of the new members does not run.
        """
        if self._process is None:
            return None
        self._process.ensure_running()
        inputs = [each for request in batch for each in request.decoded.samples.inputs]
        message = inputs_to_message(inputs, self._groups)
        return scores_from_message(self._process.ask(message, self._deadline_seconds))

    @cached_property
    def _groups(self) -> list[int]:
        """For each preprocessing of the new members its position among those of the worker."""
        members = self.spec.members
        existing, wanted = (
            group([resolve(self.spec.preprocessing_of(members[each])) for each in positions])[0]
            for positions in (self.spec.current_members, new_members(self.spec))
        )
        return [existing.index(each) for each in wanted]

    def _decide(
        self, request: _AnsweredRequest, new_scores: MemberScores | None, rows: slice
    ) -> Result:
        """Combine the scores of all members of the candidate for one request.

        Args:
            request: the request.
            new_scores: the new members' scores for the batch.
            rows: the request's samples in them.
        """
        spec, samples = self.spec, request.decoded.samples
        scores = MemberScores.empty(len(spec.members), len(samples.inputs), len(spec.score_labels))
        row_of_index = {index: row for row, index in enumerate(samples.indices)}
        position_of_name = {member.name: each for each, member in enumerate(spec.members)}
        for answered in request.result.groups:
            ballot = answered.ballot
            assert ballot is not None
            members = torch.tensor([position_of_name[name] for name in ballot.member_names])
            columns = torch.tensor([row_of_index[index] for index in answered.indices])
            scores.scores[members[:, None], columns] = ballot.scores
            scores.states[members[:, None], columns] = State.ANSWERED
            if ballot.logits is not None:
                scores.logits[members[:, None], columns] = ballot.logits
            for name in answered.missing.failed:
                for column in columns.tolist():
                    scores.reasons[position_of_name[name], column] = "it failed"
                scores.states[position_of_name[name], columns] = State.FAILED
            for name in answered.missing.late:
                scores.states[position_of_name[name], columns] = State.LATE
        if new_scores is not None:
            positions = torch.tensor(new_members(spec))
            scores.scores[positions] = new_scores.scores[:, rows]
            scores.logits[positions] = new_scores.logits[:, rows]
            scores.states[positions] = new_scores.states[:, rows]
            for (member, row), reason in new_scores.reasons.items():
                if rows.start <= row < rows.stop:
                    scores.reasons[int(positions[member]), row - rows.start] = reason
        parsed = request.decoded.accepted.request
        return combine(
            self._chooser.choose(parsed.options),
            parsed,
            samples.indices,
            range(len(samples.inputs)),
            scores,
        )

    def _count(self, request: _AnsweredRequest, candidate: Result) -> None:
        """Count how the candidate's decisions for a request differ from its answer."""
        assert self._meter is not None
        current, decided = decisions_of(request.result), decisions_of(candidate)
        comparison = compare(current, decided, self.spec.labels)
        counts: Mapping[str, int] = {
            catalogue.AGREED: comparison.num_agreeing,
            catalogue.DISAGREED: comparison.num_disagreeing,
        }
        for outcome, count in counts.items():
            self._meter.add(catalogue.CANDIDATE_SAMPLES, count, outcome)
        self._meter.add(catalogue.CANDIDATE_FAILURES, comparison.num_failed)
        for (row, column), count in comparison.confusion.items():
            self._meter.add(catalogue.CANDIDATE_CONFUSION, count, row, column)
        if self._log is not None:
            names = [sample.name for sample in request.result.samples]
            both = sorted(current.keys() & decided.keys())
            pairs = {names[index]: (current[index], decided[index]) for index in both}
            self._log.write(request.id, pairs)

    def _drop(self, batch: Sequence[_AnsweredRequest], reason: str) -> None:
        """Count samples that are not compared."""
        assert self._meter is not None
        num_samples = sum(request.num_samples for request in batch)
        if num_samples:
            self._meter.add(catalogue.CANDIDATE_DROPPED, num_samples, reason)
