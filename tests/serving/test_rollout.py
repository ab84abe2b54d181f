"""Estimates and comparisons of a rollout; tests/e2e/test_rollout.py has those with a server."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.operations.change_lock import change_lock
from torchserve_ensemble.serving.management import Worker
from torchserve_ensemble.serving.rollout.comparison import Bounds, Comparison
from torchserve_ensemble.serving.rollout.memory import (
    WORKER_BASE_BYTES,
    MemoryEstimate,
    available_bytes,
    estimate,
)
from torchserve_ensemble.serving.run_folder import rollout_lock

MEGABYTE = 10**6


def _compared(num_images: int = 4, disagreements: int = 0, slowdown: float = 1.0) -> Comparison:
    return Comparison(
        num_images=num_images,
        disagreements=[f"{number}.png: dark -> bright" for number in range(disagreements)],
        old_seconds=[0.010, 0.010, 0.500],
        new_seconds=[0.010 * slowdown, 0.010 * slowdown, 0.010],
    )


def test_without_bounds_everything_passes() -> None:
    compared = _compared(disagreements=4, slowdown=100)
    compared.check(Bounds())
    assert "0 of 4 decisions are the same" in str(compared)
    assert "3.png" not in str(compared), "only some are shown"


def test_disagreement_beyond_the_bound_is_an_error_that_names_an_image() -> None:
    _compared(disagreements=1).check(Bounds(min_agreement=0.75))
    with pytest.raises(ServerError, match=r"agree on 0\.500 .* is 0\.75: .*0\.png: dark -> bright"):
        _compared(disagreements=2).check(Bounds(min_agreement=0.75))


def test_the_median_is_bounded_and_not_one_slow_answer() -> None:
    _compared(slowdown=1.9).check(Bounds(max_slowdown=2))
    with pytest.raises(ServerError, match=r"takes 2\.10 times as long .* is 2: "):
        _compared(slowdown=2.1).check(Bounds(max_slowdown=2))


def test_an_old_version_that_does_not_answer_stops_only_those_who_ask_for_bounds() -> None:
    compared = Comparison(new_seconds=[0.01], old_failure="no worker")
    compared.check(Bounds())
    assert "does not answer (no worker)" in str(compared)
    with pytest.raises(ServerError, match="--min-agreement and --max-slowdown need"):
        compared.check(Bounds(max_slowdown=2))


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    fits = MemoryEstimate(2, 500 * MEGABYTE, 1000 * MEGABYTE, "measured", uses_gpu=False)
    fits.check()
    short = MemoryEstimate(2, 500 * MEGABYTE, 999 * MEGABYTE, "measured", uses_gpu=True)
    with pytest.raises(ServerError, match=r"2 x 500 MB .*999 MB available; the GPU's .* not"):
        short.check()


def test_a_running_worker_tells_what_the_next_one_needs(tmp_path: Path) -> None:
    process = psutil.Process()
    worker = Worker("9000", "READY", process.pid, gpu=False, memory_bytes=1)
    old, new = tmp_path / "old.mar", tmp_path / "new.mar"
    old.write_bytes(b"x")
    with new.open("wb") as file:
        file.truncate(10**12 + 1)
    estimated = estimate([worker], 1, new, old)
    growth = estimated.bytes_per_worker - 10**12
    assert 0 < growth < 100 * process.memory_info().rss
    assert not estimated.is_enough
    assert estimate([worker], 1, old, new).bytes_per_worker < 10**12


def test_without_a_worker_the_archive_tells_it(tmp_path: Path) -> None:
    archive = tmp_path / "new.mar"
    archive.write_bytes(b"x" * 1000)
    estimated = estimate([], 3, archive, tmp_path / "missing.mar")
    assert estimated.bytes_per_worker == WORKER_BASE_BYTES + 1000
    assert estimated.num_workers == 3


def test_a_container_has_only_what_its_limit_leaves(tmp_path: Path) -> None:
    whole = psutil.virtual_memory().total
    assert 0 < available_bytes(tmp_path / "missing") <= whole
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 800000\ninactive_file 50000\n")
    assert available_bytes(tmp_path) == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 150_000


def test_two_rollouts_do_not_interleave(tmp_path: Path) -> None:
    with (
        rollout_lock(tmp_path),
        pytest.raises(ServerError, match="another process replaces a version"),
        rollout_lock(tmp_path),
    ):
        pass
    with rollout_lock(tmp_path):
        pass


def test_a_rollout_and_an_apply_do_not_interleave(tmp_path: Path) -> None:
    with (
        change_lock(tmp_path, "ts-ensemble apply deployment.yaml"),
        pytest.raises(ServerError, match="another process replaces a version"),
        rollout_lock(tmp_path),
    ):
        pass
    with (
        rollout_lock(tmp_path),
        pytest.raises(ServerError, match="another process changes the server"),
        change_lock(tmp_path, "ts-ensemble apply deployment.yaml"),
    ):
        pass
