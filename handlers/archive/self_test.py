"""The self-test of an archive: probes, and what the saved members answered to them at build.

A worker answers the probes before it is ready, and ``ts-ensemble selftest`` sends them to a running
server. Both compare the answers with `check`, so a machine or a library that computes something
else is noticed before a client gets a wrong answer.

This module needs the standard library alone.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import ArchiveError, MemberError

if TYPE_CHECKING:
    from ..spec import EnsembleSpec

MAX_DESCRIBED_BYTES = 256 * 1024
"""Probes of more bytes in all are left out of a server's description of its model."""

MIN_TOLERANCE = 1e-3
"""Processors and versions of torch round differently, even if the spec tolerates no difference."""


@dataclass(frozen=True)
class Probe:
    """One sample of a self-test, with the answer that the saved members gave to it at build.

    Attributes:
        name: what messages call the probe.
        content: the file, as a client sends it; None if it was left out of a description.
        scores: for each member its score for each label, or its values if the task is regression.
        decision: the keys label, labels and abstained of the JSON answer, as far as it has them.
        decision_is_stable: whether the default policy decides the same for all scores that differ
            from these by no more than the tolerance.
    """

    name: str
    content: bytes | None
    scores: Mapping[str, tuple[float, ...]]
    decision: Mapping[str, Any]
    decision_is_stable: bool


@dataclass(frozen=True)
class SelfTest:
    """Probes, and how they are sent and compared.

    Attributes:
        probes: the probes; at least one.
        labels: labels of the scores.
        field: where a JSON answer has a member's scores, ``scores`` or ``values``.
        options: options of the request that each probe is sent with.
        tolerance: largest allowed difference of a member's score. The values of a regression are
            divided by the largest of them first, if that is above 1.
    """

    probes: tuple[Probe, ...]
    labels: tuple[str, ...]
    field: str
    options: Mapping[str, str]
    tolerance: float

    def contents(self) -> dict[str, bytes]:
        """Return name and file of each probe whose file is there."""
        return {each.name: each.content for each in self.probes if each.content is not None}

    def to_json(self, *, max_bytes: int | None = None) -> dict[str, Any]:
        """Return the self-test as JSON, for its file in the archive and for a description.

        Args:
            max_bytes: contents of probes are left out as soon as this is exceeded; None: never.
        """
        probes, num_bytes = [], 0
        for probe in self.probes:
            content = probe.content
            num_bytes += len(content or b"")
            if max_bytes is not None and num_bytes > max_bytes:
                content = None
            encoded = None if content is None else base64.b64encode(content).decode()
            probes.append({**vars(probe), "content": encoded})
        return {
            "tolerance": self.tolerance,
            "options": dict(self.options),
            "field": self.field,
            "labels": self.labels,
            "probes": probes,
        }

    @classmethod
    def from_json(cls, content: Any, *, source: str) -> SelfTest:
        """Read what `to_json` returned.

        Args:
            content: the JSON. TorchServe leaves keys without a value out of a description.
            source: where it comes from, for messages.

        Raises:
            ArchiveError: it is no self-test.
        """
        try:
            result = cls(
                probes=tuple(_probe(each) for each in content["probes"]),
                labels=tuple(map(str, content["labels"])),
                field=str(content["field"]),
                options={str(name): str(value) for name, value in content["options"].items()},
                tolerance=float(content["tolerance"]),
            )
            if not all(each.scores for each in result.probes) or not result.probes:
                raise ValueError("there are no probes, or no scores")
            if not 0 < result.tolerance <= 1:
                raise ValueError("there is no tolerance")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ArchiveError(
                f"{source}: the self-test is damaged ({error!r}); build the archive again"
            ) from None
        return result

    @classmethod
    def from_text(cls, text: bytes, *, source: str) -> SelfTest:
        """Read the file of a self-test in an archive; arguments and errors are `from_json`'s."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        return cls.from_json(content, source=source)


def tolerance_of(spec: EnsembleSpec) -> float:
    """Return the largest difference from a score of a saved member at build that a worker allows.

    It is the one that the spec allows other engines and precisions.
    """
    return max(spec.runtime.tolerance, MIN_TOLERANCE)


def check(self_test: SelfTest, answers: Mapping[str, Mapping[str, Any]]) -> float:
    """Compare the answers to probes with those at build.

    Args:
        self_test: the self-test.
        answers: name of a probe -> the prediction of its JSON answer; at least one probe's.

    Returns:
        The largest difference of a score of a member.

    Raises:
        MemberError: a score differs by more than the tolerance, or a decision differs though it is
            stable. The message names the member and the probe with the largest difference.
    """
    differences = {
        (probe.name, member): _difference(self_test, expected, answers[probe.name], member)
        for probe in self_test.probes
        if probe.name in answers
        for member, expected in probe.scores.items()
    }
    # NaN stands for a member without scores, which is worse than any difference.
    (name, member), largest = max(
        differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1]
    )
    tolerance = self_test.tolerance
    if not largest <= tolerance:
        found = (
            f"gives no scores for the probe {name}"
            if math.isnan(largest)
            else f"differs by {largest:.2g} from its scores at build for the probe {name}, and the "
            f"tolerance is {tolerance:g}"
        )
        raise MemberError(
            f"the self-test failed: member '{member}' {found}. This machine or its libraries "
            "compute it differently: install the versions that archive.json lists, set "
            "runtime.engine: torch and runtime.precision: float32, or raise runtime.tolerance, "
            "and build again"
        )
    for probe in self_test.probes:
        if probe.name in answers and probe.decision_is_stable:
            answered = decision_of(answers[probe.name])
            if answered != probe.decision:
                raise MemberError(
                    f"the self-test failed: for the probe {probe.name} the default policy decides "
                    f"{_text(answered)}, and at build it decided {_text(probe.decision)}, though "
                    f"every score of a member is within the tolerance of {tolerance:g}: compare "
                    "the policies of this server with those of the archive, and build it again"
                )
    return largest


def decision_of(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the policy decided in the prediction of a JSON answer."""
    values = ((key, prediction.get(key)) for key in ("label", "labels", "abstained"))
    # TorchServe leaves keys without a value out of a description.
    return {key: value for key, value in values if value is not None}


def _difference(
    self_test: SelfTest, expected: Sequence[float], prediction: Mapping[str, Any], member: str
) -> float:
    """Return the largest difference between two answers of a member; NaN if it gave no scores."""
    answered = (prediction.get("members") or {}).get(member) or {}
    by_label = answered.get(self_test.field) or {}
    scores: list[Any] = [by_label.get(label) for label in self_test.labels]
    if len(scores) != len(expected) or None in scores:
        return math.nan
    is_regression = self_test.field == "values"
    scale = max([1.0, *map(abs, expected)]) if is_regression else 1.0
    differences = [abs(a - b) / scale for a, b in zip(scores, expected, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _text(decision: Mapping[str, Any]) -> str:
    if decision.get("abstained"):
        return "nothing"
    return ", ".join(decision.get("labels", ())) or str(decision.get("label"))


def _probe(content: Any) -> Probe:
    """Read one probe of the JSON; a mistake in it is an error of any type."""
    encoded = content.get("content")
    return Probe(
        name=str(content["name"]),
        content=None if encoded is None else base64.b64decode(encoded, validate=True),
        scores={str(name): tuple(map(float, scores)) for name, scores in content["scores"].items()},
        decision=dict(content["decision"]),
        decision_is_stable=bool(content["decision_is_stable"]),
    )
