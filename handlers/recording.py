"""Turns what happened to a batch into metrics and traces."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .answers.encoding import Response
from .base.errors import REFUSALS
from .base.tasks import Task
from .decisions.result import SIDE_KEY, Group
from .engine.member_scores import MemberScores, State
from .engine.score_cache import ScoreCache
from .observability import catalogue
from .observability.meter import Meter
from .observability.timeline import BatchTimeline, StageName
from .observability.tracing import Tracer
from .policies import Ballot, Outcome
from .requests.raw_request import RawRequest
from .spec import EnsembleSpec
from .stages import Answered, Refused

logger = logging.getLogger(__name__)

_STATUSES = ("200", "400", "413", "415", "500", "503", "504")
_MAX_PENDING_SCORES = 1_000_000
"""Batches are counted at once if their scores take more memory than this: 4 MB in float32."""

_KINDS_OF_MISSING = {State.FAILED: "failed", State.LATE: "late"}


@dataclass(frozen=True)
class _AnsweredBatch:
    """What is counted of a batch, without its requests, whose images take memory.

    Attributes:
        timeline: the times of its stages and calls.
        responses: (HTTP status, type of the error or an empty text) of each request.
        groups: the answered samples of all requests.
        sample_errors: types of the errors of single samples in answered requests.
        sides: which side answered each request of a canary.
    """

    timeline: BatchTimeline
    responses: list[tuple[int, str]]
    groups: list[Group]
    sample_errors: list[str]
    sides: list[str]


class Recorder:
    """Counts and measures the batches of one ensemble, and traces them if that is switched on.

    Nothing is recorded before `start`. A batch is only noted while it is answered; `collect`
    counts all batches of a second together, which takes less time than to count each of them.

    Attributes:
        meter: what was counted and measured since the last report.
        tracer: makes spans of the batches; None if nobody asked for traces.
    """

    def __init__(self, spec: EnsembleSpec, cache: ScoreCache | None, device: torch.device) -> None:
        """Prepare the labels of the metrics.

        Args:
            spec: the ensemble.
            cache: its score cache, if it has one.
            device: where its members run.
        """
        self.meter = Meter()
        self.tracer: Tracer | None = None
        self._worker: str | None = None
        self._lock = threading.Lock()
        self._batches: list[_AnsweredBatch] = []
        self._num_pending_scores = 0
        self._members = [member.name for member in spec.members]
        self._cache = cache
        self._device = device
        self._counted_hits = self._counted_misses = 0
        self._labels = list(spec.labels[: catalogue.MAX_LABELS])
        if len(spec.labels) > catalogue.MAX_LABELS:
            self._labels.append(catalogue.OTHER_LABELS)
        self._is_presence = spec.task is Task.PRESENCE
        self._votes = spec.task is not Task.REGRESSION

    def start(self, worker: str) -> None:
        """Begin to record, and make every series appear with 0.

        Prometheus sees no increase in a series that appears with its first event.

        Args:
            worker: identifier of this worker.
        """
        self._worker = worker
        labels_of: dict[catalogue.Metric, list[tuple[str, ...]]] = {
            catalogue.REQUESTS: [(status,) for status in _STATUSES],
            catalogue.ERRORS: [(kind,) for kind in REFUSALS],
            catalogue.SAMPLE_ERRORS: [(kind,) for kind in REFUSALS],
            catalogue.STAGE_SECONDS: [(stage,) for stage in StageName],
            catalogue.MEMBER_SECONDS: [(member,) for member in self._members],
            catalogue.MEMBER_SAMPLES: [(member,) for member in self._members],
            catalogue.MEMBER_FAILURES: [
                (member, kind) for member in self._members for kind in _KINDS_OF_MISSING.values()
            ],
            catalogue.PREDICTIONS: [(label,) for label in self._labels],
            catalogue.ROLLOUT_REQUESTS: [(side,) for side in catalogue.SIDES],
            catalogue.CANDIDATE_SAMPLES: [(catalogue.AGREED,), (catalogue.DISAGREED,)],
            catalogue.CANDIDATE_DROPPED: [(reason,) for reason in catalogue.DROP_REASONS],
            catalogue.CANDIDATE_CONFUSION: [(self._labels[0], self._labels[0])],
        }
        for metric in catalogue.METRICS:
            if metric.kind is catalogue.Kind.COUNTER:
                for labels in labels_of.get(metric, [()]):
                    self.meter.add(metric, 0, *labels)
            elif metric.kind is catalogue.Kind.HISTOGRAM:
                self.meter.observe(metric, None)

    def count_load(self) -> None:
        """Count that this worker has loaded the members."""
        self.meter.add(catalogue.LOADS)

    def collect(self) -> None:
        """Count the batches that were noted, and read memory and cache."""
        with self._lock:
            batches, self._batches = self._batches, []
            self._num_pending_scores = 0
        for batch in batches:
            self._measure(batch)
        self._count(batches)
        self._read_gauges()

    def _read_gauges(self) -> None:
        """Read the worker's memory, and what the score cache has counted."""
        meter, cache, worker = self.meter, self._cache, self._worker or ""
        meter.set(catalogue.MEMORY_BYTES, _resident_bytes(), worker)
        on_gpu = self._device.type == "cuda"
        gpu_bytes = torch.cuda.memory_reserved(self._device) if on_gpu else 0
        meter.set(catalogue.GPU_MEMORY_BYTES, gpu_bytes, worker)
        meter.set(catalogue.CACHE_BYTES, 0 if cache is None else cache.bytes, worker)
        if cache is not None:
            hits, misses = cache.hits, cache.misses
            meter.add(catalogue.CACHE_HITS, hits - self._counted_hits)
            meter.add(catalogue.CACHE_MISSES, misses - self._counted_misses)
            self._counted_hits, self._counted_misses = hits, misses

    def count_missing(self, outputs: MemberScores) -> None:
        """Count the samples that members did not answer.

        Args:
            outputs: the scores of a batch.
        """
        if self._worker is None or not bool((outputs.states > State.ANSWERED).any()):
            return
        for state, kind in _KINDS_OF_MISSING.items():
            counts = (outputs.states == state).sum(dim=1).tolist()
            for member, count in zip(self._members, counts, strict=True):
                if count:
                    self.meter.add(catalogue.MEMBER_FAILURES, count, member, kind)

    def record(
        self,
        timeline: BatchTimeline,
        requests: Sequence[RawRequest],
        states: Sequence[Answered | Refused],
        responses: Sequence[Response],
    ) -> None:
        """Record a batch that is answered. Nothing that fails here can reach an answer.

        Args:
            timeline: the times of its stages and of the members' calls.
            requests: its requests.
            states: one for each request, as it was before its answer was written.
            responses: one for each request.
        """
        if self._worker is None:
            return
        try:
            results = [state.result for state in states if isinstance(state, Answered)]
            batch = _AnsweredBatch(
                timeline=timeline,
                responses=[(response.status, response.error) for response in responses],
                groups=[group for result in results for group in result.groups],
                sample_errors=[
                    type(error).__name__ for result in results for error in result.errors.values()
                ],
                sides=[side for result in results if (side := result.model.get(SIDE_KEY))],
            )
            with self._lock:
                self._batches.append(batch)
                self._num_pending_scores += sum(map(_num_scores, batch.groups))
            if self._num_pending_scores > _MAX_PENDING_SCORES:
                self.collect()
            if self.tracer is not None:
                self.tracer.trace(timeline, requests, responses, self._members)
        except Exception:
            logger.exception("a batch could not be recorded in metrics and traces")

    def _measure(self, batch: _AnsweredBatch) -> None:
        """Add the times and sizes of a batch."""
        meter, timeline = self.meter, batch.timeline
        for stage in timeline.stages:
            meter.add(catalogue.STAGE_SECONDS, stage.end - stage.start, stage.name)
        for call in timeline.calls:
            share = (call.end - call.start) / len(call.members)
            for member in call.members:
                meter.add(catalogue.MEMBER_SECONDS, share, self._members[member])
                meter.add(catalogue.MEMBER_SAMPLES, call.num_samples, self._members[member])
        meter.observe(catalogue.BATCH_SECONDS, timeline.stages[-1].end - timeline.arrived)
        meter.observe(catalogue.BATCH_REQUESTS, len(batch.responses))
        meter.observe(catalogue.BATCH_SAMPLES, sum(len(group.indices) for group in batch.groups))

    def _count(self, batches: Sequence[_AnsweredBatch]) -> None:
        """Count requests, samples, decisions and errors of several batches."""
        meter = self.meter
        responses = Counter(each for batch in batches for each in batch.responses)
        for (status, error), count in responses.items():
            meter.add(catalogue.REQUESTS, count, str(status))
            if error:
                meter.add(catalogue.ERRORS, count, error)
        sample_errors = Counter(kind for batch in batches for kind in batch.sample_errors)
        for kind, count in sample_errors.items():
            meter.add(catalogue.SAMPLE_ERRORS, count, kind)
        for side, count in Counter(each for batch in batches for each in batch.sides).items():
            meter.add(catalogue.ROLLOUT_REQUESTS, count, side)
        groups = [group for batch in batches for group in batch.groups]
        meter.add(catalogue.SAMPLES, sum(len(group.indices) for group in groups))
        self._count_decisions([group.outcome for group in groups])
        self._count_disagreements([group.ballot for group in groups if group.ballot is not None])

    def _count_decisions(self, outcomes: Sequence[Outcome]) -> None:
        """Count the chosen labels and the abstentions."""
        meter = self.meter
        abstained = [each.abstained.numpy() for each in outcomes if each.abstained is not None]
        num_abstained = sum(int(each.sum()) for each in abstained)
        if num_abstained:
            meter.add(catalogue.ABSTENTIONS, num_abstained)
        decisions = [each.decisions.numpy() for each in outcomes if each.decisions is not None]
        if not decisions:
            return
        counts = np.concatenate(decisions).sum(axis=0).tolist()
        if self._is_presence:
            # There is one column, which says whether the second label is present. A sample without
            # it has the first label, unless the policy abstained.
            num_samples = sum(map(len, decisions))
            counts.insert(0, num_samples - counts[0] - num_abstained)
        counts[catalogue.MAX_LABELS :] = [sum(counts[catalogue.MAX_LABELS :])]
        for label, count in zip(self._labels, counts, strict=False):
            if count:
                meter.add(catalogue.PREDICTIONS, count, label)

    def _count_disagreements(self, ballots: Sequence[Ballot]) -> None:
        """Count the samples on which members voted differently."""
        votes_of_panels: dict[int, list[np.ndarray[Any, Any]]] = {}
        for ballot in ballots:
            if self._votes and len(ballot.member_names) > 1:
                votes_of_panels.setdefault(len(ballot.member_names), []).append(
                    ballot.votes.numpy()
                )
        for panels in votes_of_panels.values():
            votes = np.concatenate(panels, axis=1)
            disagree = (votes != votes[:1]).any(axis=(0, 2))
            self.meter.add(catalogue.COMPARED, len(disagree))
            self.meter.add(catalogue.DISAGREEMENTS, int(disagree.sum()))


def _num_scores(group: Group) -> int:
    """Number of scores that a group keeps in memory until it is counted."""
    return group.outcome.scores.numel() if group.ballot is None else group.ballot.scores.numel()


def _resident_bytes() -> int:
    """Memory of this process, in bytes; 0 where Linux' /proc does not exist."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
