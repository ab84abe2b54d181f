"""Estimates the memory that further workers need, before they are started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ...handlers.base.errors import ServerError
from ..management import Worker

WORKER_BASE_BYTES = 600 * 10**6
"""Memory of a worker without its members' weights: Python, torch and the other libraries.

Workers of the tests' and examples' ensembles, with weights of less than 1 MB, held 575 to 605 MB
on a machine without a GPU. Of that 270 MB are files of libraries, which workers share.
"""

_MIN_GROWTH_BYTES = 10**6
"""Archives that differ by less hold the same weights."""

_CGROUP = Path("/sys/fs/cgroup")
"""In a container this folder describes the container's own limits (control groups, version 2)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What new workers need, and what there is.

    Attributes:
        num_workers: number of workers to start.
        bytes_per_worker: what each of them needs.
        available_bytes: what the machine, or the container, can still give.
        source: what `bytes_per_worker` was taken from, for people.
        uses_gpu: whether the workers that run use a GPU, whose memory is not estimated.
    """

    num_workers: int
    bytes_per_worker: int
    available_bytes: int
    source: str
    uses_gpu: bool

    @property
    def is_enough(self) -> bool:
        """Whether the workers fit."""
        return self.num_workers * self.bytes_per_worker <= self.available_bytes

    def __str__(self) -> str:
        gpu = "; the GPU's memory is not estimated" if self.uses_gpu else ""
        return (
            f"{self.num_workers} x {_megabytes(self.bytes_per_worker)} for new workers "
            f"({self.source}), {_megabytes(self.available_bytes)} available{gpu}"
        )

    def check(self) -> None:
        """Check that the workers fit.

        Raises:
            ServerError: they do not; the message has the numbers.
        """
        if not self.is_enough:
            raise ServerError(
                f"there is not enough memory for both versions side by side: {self}. Scale the "
                "old version down first, free memory, or use --ignore-memory"
            )


def estimate(
    workers: Sequence[Worker], num_workers: int, new_archive: Path | None, old_archive: Path
) -> MemoryEstimate:
    """Estimate the memory of new workers from those of the old version.

    Args:
        workers: workers of the old version, which may belong to another machine.
        num_workers: number of workers to start.
        new_archive: archive of the new version; None if it is not at hand.
        old_archive: archive of the old version, which may be missing.
    """
    num_bytes = max(map(_resident_bytes, workers), default=0)
    if num_bytes:
        source = "as much as a worker of the old version"
        growth = _size(new_archive) - _size(old_archive)
        if new_archive is not None and old_archive.exists() and growth > _MIN_GROWTH_BYTES:
            num_bytes += growth
            source += f" and {_megabytes(growth)} by which the archive is larger"
    else:
        num_bytes = WORKER_BASE_BYTES + _size(new_archive)
        source = f"the archive's size and {_megabytes(WORKER_BASE_BYTES)} for the libraries"
    return MemoryEstimate(
        num_workers=num_workers,
        bytes_per_worker=num_bytes,
        available_bytes=available_bytes(),
        source=source,
        uses_gpu=any(worker.gpu for worker in workers),
    )


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the memory that new processes can get without swapping.

    Args:
        cgroup: folder that describes the container's limits, if it has any.
    """
    available = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (cgroup / "memory.stat").read_text().splitlines()
        )
        # Pages of files that nobody uses are given back when they are needed.
        reclaimable = int(statistics["inactive_file"])
    except (OSError, ValueError, KeyError):
        # There is no container, or it has no limit ("max").
        return available
    return max(0, min(available, limit - used + reclaimable))


def _resident_bytes(worker: Worker) -> int:
    """Memory of a worker: its process's own, or what TorchServe says of it."""
    try:
        return int(psutil.Process(worker.pid).memory_info().rss)
    except (psutil.Error, ValueError):
        return worker.memory_bytes


def _size(archive: Path | None) -> int:
    """Bytes of an archive, which is a file or a folder; 0 if it is missing."""
    if archive is None or not archive.exists():
        return 0
    if archive.is_dir():
        return sum(each.stat().st_size for each in archive.rglob("*") if each.is_file())
    return archive.stat().st_size


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
