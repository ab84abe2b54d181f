"""The way of the data: parse, decode, preprocess, run, combine, answer.

No type of TorchServe appears here: the same service answers in a worker, in a test, and in
``ts-ensemble predict --local``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import EnsembleError, MemberError, PolicyError, RequestError, SampleError, SpecError
from .images import decode_image
from .policies import Ballot, BoundPolicy, Catalogue, check_catalogue, parse_policy
from .requests import (
    OPTION_NAMES,
    OnError,
    ParsedRequest,
    RawRequest,
    Sample,
    parse_request,
)
from .responses import Answerer, Response, encode, encode_error, error_content, with_outcome
from .runtime import MemberScores, Runtime
from .spec import EnsembleSpec
from .tasks import Task

logger = logging.getLogger(__name__)


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
    policy: BoundPolicy
    images: list[Tensor] = field(default_factory=list)
    errors: dict[int, EnsembleError] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether an unreadable sample refuses the whole request."""
        readable = bool(self.images)
        return bool(self.errors) and (self.request.options.on_error is OnError.FAIL or not readable)


class EnsembleService:
    """Answers requests with a loaded ensemble."""

    def __init__(self, spec: EnsembleSpec, runtime: Runtime, identity: Identity) -> None:
        self.spec = spec
        self.identity = identity
        self._runtime = runtime
        self._answerer = Answerer(spec.task, spec.labels, spec.score_labels)
        self._catalogue = catalogue(spec)
        self._weights = torch.tensor([member.voting_weight for member in spec.members])
        self._member_thresholds = torch.tensor([spec.thresholds(m) for m in spec.members])
        self._thresholds = torch.tensor(spec.thresholds())

    @classmethod
    def load(
        cls,
        spec: EnsembleSpec,
        folder: Path,
        *,
        identity: Identity | None = None,
        device: torch.device | None = None,
        workers: int = 1,
    ) -> EnsembleService:
        """Load all members.

        Args:
            spec: the ensemble.
            folder: where the files that it names are.
            identity: defaults to the spec's name and version.
            device: defaults to what the spec asks for.
            workers: how many workers share the machine's cores.

        Raises:
            SpecError: a policy or preprocessing does not exist.
            MemberError: a member cannot be loaded.
        """
        torch.set_num_threads(spec.runtime.threads or max(1, (os.cpu_count() or 1) // workers))
        chosen = device or choose_device(spec, gpu=None)
        runtime = Runtime.load(spec, folder, chosen)
        return cls(spec, runtime, identity or Identity(spec.name, spec.version))

    def answer(self, requests: Sequence[RawRequest]) -> list[Response]:
        """One response for each request, in order; a bad request never fails its neighbours."""
        accepted = [self._accept(request) for request in requests]
        pending = [entry for entry in accepted if isinstance(entry, _Pending)]
        live = [entry for entry in pending if not entry.refused]
        answered: dict[int, Response] = {}
        try:
            outputs = self._runtime.run([image for entry in live for image in entry.images])
        except MemberError as error:
            logger.exception("a member failed")
            answered = {id(entry): encode_error(error) for entry in live}
        else:
            start = 0
            for entry in live:
                stop = start + len(entry.images)
                answered[id(entry)] = self._combine(entry, outputs, slice(start, stop))
                start = stop
        return [
            entry if isinstance(entry, Response) else answered.get(id(entry)) or _refusal(entry)
            for entry in accepted
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
            "policies": self._catalogue.describe(),
            "options": list(OPTION_NAMES),
            "limits": {
                "max_samples": spec.limits.max_samples,
                "max_pixels": spec.limits.max_pixels,
            },
            "device": str(self._runtime.device),
        }

    def _accept(self, request: RawRequest) -> _Pending | Response:
        try:
            parsed = parse_request(request, self.spec.limits)
            options = parsed.options
            policy = parse_policy(
                options.policy or self.spec.policies.default,
                options.policy_parameters,
                self._catalogue,
            )
        except RequestError as error:
            return encode_error(error)
        entry = _Pending(parsed, policy)
        for sample in parsed.samples:
            try:
                entry.images.append(self._decode(sample))
            except RequestError as error:
                entry.errors[sample.index] = error
        return entry

    def _decode(self, sample: Sample) -> Tensor:
        if isinstance(sample.data, SampleError):
            raise sample.data
        return decode_image(
            sample.data,
            max_pixels=self.spec.limits.max_pixels,
            name=sample.name,
            index=sample.index,
        )

    def _combine(self, entry: _Pending, outputs: MemberScores, rows: slice) -> Response:
        scores = outputs.scores[:, rows]
        options = entry.request.options
        errors = dict(entry.errors)
        readable = [s for s in entry.request.samples if s.index not in errors]
        finite = scores.isfinite().all(dim=2)
        for position in (~finite.all(dim=0)).nonzero().flatten().tolist():
            errors[readable[position].index] = self._not_finite(
                readable[position], finite[:, position]
            )
        kept = [i for i, sample in enumerate(readable) if sample.index not in errors]
        if errors and (options.on_error is OnError.FAIL or not kept):
            return _refused(errors)
        logits = outputs.logits[:, rows] if outputs.logits is not None else None
        if len(kept) != len(readable):
            scores = scores[:, kept]
            logits = logits[:, kept] if logits is not None else None
        ballot = Ballot(
            task=self.spec.task,
            scores=scores,
            member_names=tuple(member.name for member in self.spec.members),
            weights=self._weights,
            member_thresholds=self._member_thresholds,
            thresholds=self._thresholds,
            logits=logits,
        )
        try:
            outcome = entry.policy.combine(ballot)
        except PolicyError as error:
            return encode_error(error)
        combined = with_outcome(
            self._answerer.answers(outcome.scores, outcome.decisions, options.top_k),
            outcome,
            self.spec.score_labels,
        )
        by_member = self._member_answers(ballot, options.top_k)
        predictions: dict[int, dict[str, Any]] = {}
        for row, position in enumerate(kept):
            sample = readable[position]
            members = {name: answers[row] for name, answers in by_member.items()}
            predictions[sample.index] = {"sample": sample.name, **combined[row], "members": members}
        for index, failure in errors.items():
            name = entry.request.samples[index].name
            predictions[index] = {"sample": name, "error": error_content(failure)}
        return encode(
            {
                "model": self.identity.as_json(),
                "policy": {"name": entry.policy.name, "parameters": entry.policy.parameters},
                "predictions": [predictions[index] for index in sorted(predictions)],
            }
        )

    def _member_answers(self, ballot: Ballot, top_k: int | None) -> dict[str, list[dict[str, Any]]]:
        votes = None if self.spec.task is Task.REGRESSION else ballot.votes
        return {
            name: self._answerer.answers(
                ballot.scores[index], votes[index] if votes is not None else None, top_k
            )
            for index, name in enumerate(ballot.member_names)
        }

    def _not_finite(self, sample: Sample, finite: Tensor) -> MemberError:
        names = [
            member.name
            for member, good in zip(self.spec.members, finite.tolist(), strict=True)
            if not good
        ]
        return MemberError(
            f"sample {sample.index} ({sample.name}): the scores of member {', '.join(names)} are "
            "not finite numbers; the member's weights or this input overflow"
        )


def catalogue(spec: EnsembleSpec) -> Catalogue:
    """The policies of a deployment, each checked.

    Raises:
        SpecError: a policy of the spec does not exist or has a wrong parameter.
    """
    try:
        result = Catalogue(
            task=spec.task,
            member_names=tuple(member.name for member in spec.members),
            named=dict(spec.policies.named),
            allowed=None if spec.policies.allowed is None else frozenset(spec.policies.allowed),
            default=spec.policies.default,
        )
        check_catalogue(result)
    except PolicyError as error:
        raise SpecError(f"policies of ensemble '{spec.name}': {error}") from error
    return result


def choose_device(spec: EnsembleSpec, gpu: int | None) -> torch.device:
    """The device that the spec asks for.

    Args:
        spec: the ensemble.
        gpu: the GPU that TorchServe assigned to this worker, if it did.

    Raises:
        MemberError: the spec asks for a GPU and there is none.
    """
    wanted = spec.runtime.device
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise MemberError(
            f"ensemble '{spec.name}' asks for a GPU (runtime.device: cuda) and this machine has "
            "none that torch can use; set device: auto to run on the CPU"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device(f"cuda:{gpu or 0}")


def _refused(errors: Mapping[int, EnsembleError]) -> Response:
    failed = [errors[index] for index in sorted(errors)]
    return encode_error(failed[0], failed)


def _refusal(entry: _Pending) -> Response:
    return _refused(entry.errors)
