"""Compares what a server has with what it is to have, version by version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ..serving.management import ModelVersion, Worker
from .plan import DesiredModel, DesiredState, DesiredVersion
from .state import actual_state, digest_of


class Finding(StrEnum):
    """How a version compares with what is desired."""

    AS_DESIRED = "as desired"
    LOADING = "loading"
    MISSING = "missing"
    DIFFERENT = "different"
    NOT_LISTED = "not listed"


@dataclass(frozen=True)
class ComparedVersion:
    """One version that a server has, or is to have.

    Attributes:
        name: name of the model.
        version: the version.
        finding: how it compares.
        reasons: what differs, as phrases.
        default: whether requests that name no version go to it.
        archive: name of the archive's file that it was registered from, or is to be.
        digest: digest of its archive; None if it is not known.
        batch_size: largest number of requests in one batch.
        max_batch_delay_ms: longest time that a request waits for its batch to fill.
        wanted_workers: number of workers that it is to have; None: any number.
        workers: its workers.
    """

    name: str
    version: str
    finding: Finding
    reasons: tuple[str, ...]
    default: bool
    archive: str
    digest: str | None
    batch_size: int
    max_batch_delay_ms: int
    wanted_workers: int | None
    workers: tuple[Worker, ...]

    def lines(self) -> list[str]:
        """Return one line for the version, and one for each of its workers."""
        num_ready = sum(worker.ready for worker in self.workers)
        wanted = self.wanted_workers or len(self.workers) or "any"
        default = "default" if self.default else ""
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        first = (
            f"{self.name} {self.version}  {default:7}  {self.finding}{reasons}  {num_ready} of "
            f"{wanted} workers READY  batch {self.batch_size} in {self.max_batch_delay_ms} ms  "
            f"{self.archive}"
        )
        return [first, *map(_worker_line, self.workers)]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return asdict(self)


def compare(
    desired: DesiredState, described: Mapping[str, Sequence[ModelVersion]]
) -> list[ComparedVersion]:
    """Compare each version that a server has or is to have, sorted by model.

    Args:
        desired: what the server is to have.
        described: name of each model -> the versions that the server has.
    """
    rows = []
    for name in sorted({*desired.models, *described}):
        rows += _compared_model(desired, name, list(described.get(name, ())))
    return rows


def _compared_model(
    desired: DesiredState, name: str, versions: list[ModelVersion]
) -> list[ComparedVersion]:
    model = desired.models.get(name)
    wanted = {each.version: each for each in model.in_order()} if model else {}
    present = {each.version: each for each in versions}
    actual = actual_state({name: versions})[name].versions if versions else {}
    rows = []
    for version in dict.fromkeys((*wanted, *present)):
        if version not in present:
            rows.append(_missing(name, wanted[version]))
            continue
        now = present[version]
        finding, reasons = Finding.NOT_LISTED, ["apply would remove it"]
        if model is None and not desired.remove_other_models:
            reasons = []
        if model is not None and version in wanted:
            differences = actual[version].contents.differences(wanted[version].contents)
            finding, reasons = _finding(model, wanted[version], now, differences)
        rows.append(
            ComparedVersion(
                name=name,
                version=version,
                finding=finding,
                reasons=tuple(reasons),
                default=now.default,
                archive=now.archive,
                digest=digest_of(now),
                batch_size=now.batch_size,
                max_batch_delay_ms=now.max_batch_delay_ms,
                wanted_workers=wanted[version].workers if version in wanted else None,
                workers=now.workers,
            )
        )
    return rows


def _finding(
    model: DesiredModel, wanted: DesiredVersion, now: ModelVersion, differences: list[str]
) -> tuple[Finding, list[str]]:
    """Judge a version that is there and is to be there."""
    if wanted.workers is not None and len(now.workers) != wanted.workers:
        differences.append(f"workers: {len(now.workers)}, not {wanted.workers}")
    if not now.workers and wanted.workers is None:
        differences.append("no worker")
    if now.default != (wanted.version == model.default):
        differences.append("it is the default version" if now.default else "not the default one")
    if differences:
        return Finding.DIFFERENT, differences
    if not all(worker.ready for worker in now.workers):
        return Finding.LOADING, []
    return Finding.AS_DESIRED, []


def _missing(name: str, wanted: DesiredVersion) -> ComparedVersion:
    contents = wanted.contents
    return ComparedVersion(
        name=name,
        version=wanted.version,
        finding=Finding.MISSING,
        reasons=(),
        default=False,
        archive=contents.archive,
        digest=contents.digest,
        batch_size=contents.batch_size,
        max_batch_delay_ms=contents.max_batch_delay_ms,
        wanted_workers=wanted.workers,
        workers=(),
    )


def _worker_line(worker: Worker) -> str:
    device = "gpu" if worker.gpu else "cpu"
    # TorchServe measures once a minute, and says 0 until then.
    memory = f"  {worker.memory_bytes / 1e6:.0f} MB" if worker.memory_bytes else ""
    return f"  worker {worker.id}  {worker.status}  pid {worker.pid}  {device}{memory}"
