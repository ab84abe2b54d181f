"""Profiling: which settings are chosen, variants of an archive, and the load itself."""

from __future__ import annotations

import argparse
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.variants import vary_archive
from torchserve_ensemble.commands.profile import _numbers
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.handlers.spec import Serving, load_spec
from torchserve_ensemble.serving.frontier import MeasuredChoice, ServingChoice, best, frontier
from torchserve_ensemble.serving.load import (
    LoadMetrics,
    LoadTarget,
    closed_loop,
    metrics_of,
    percentile,
)
from torchserve_ensemble.tuning.profile import choices, variant
from torchserve_ensemble.tuning.writing import write_serving

metrics = st.builds(
    LoadMetrics,
    clients=st.integers(1, 32),
    images_per_second=st.floats(1, 1000),
    p50_ms=st.just(1.0),
    p99_ms=st.floats(1, 1000),
)
several = st.lists(st.builds(MeasuredChoice, st.just(ServingChoice(1, 8, 5)), metrics), max_size=20)


@given(several)
def test_nothing_beats_the_frontier_in_both(tried: list[MeasuredChoice]) -> None:
    found = frontier(tried)
    for each in tried:
        assert any(
            other.metrics.p99_ms <= each.metrics.p99_ms
            and other.metrics.images_per_second >= each.metrics.images_per_second
            for other in found
        )
    rates = [each.metrics.images_per_second for each in found]
    assert rates == sorted(set(rates))


@given(several, st.floats(1, 1000))
def test_the_best_keeps_to_the_bound_and_lies_on_the_frontier(
    tried: list[MeasuredChoice], bound: float
) -> None:
    found = best(tried, bound)
    within = [each for each in tried if each.metrics.p99_ms <= bound]
    if found is None:
        assert not within
        return
    assert found.metrics.p99_ms <= bound
    assert found.metrics.images_per_second == max(
        each.metrics.images_per_second for each in frontier(within)
    )


def test_a_batch_of_one_is_tried_with_one_delay() -> None:
    found = choices([1, 2], [1, 8], [1, 10], [None])
    assert found == [
        ServingChoice(1, 1, 1),
        ServingChoice(1, 8, 1),
        ServingChoice(1, 8, 10),
        ServingChoice(2, 1, 1),
        ServingChoice(2, 8, 1),
        ServingChoice(2, 8, 10),
    ]


@pytest.mark.parametrize("text", ["", "a", "0", "1,,2", "-1"])
def test_lists_of_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no list of numbers"):
        _numbers(text)


def test_a_variant_is_whole_and_has_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "spec"
    folder.mkdir()
    probes(folder, serving={"startup_timeout_s": 99})
    spec = load_spec(folder / "ensemble.yaml")
    archive = build_archive(folder / "ensemble.yaml", tmp_path)
    serving = Serving(workers=2, batch_size=32, max_batch_delay_ms=7, startup_timeout_s=99)
    vary_archive(archive, tmp_path / "variant.mar", spec, serving, threads=3)
    with zipfile.ZipFile(tmp_path / "variant.mar") as opened:
        opened.extractall(tmp_path / "variant")
    verify_archive(tmp_path / "variant.mar")
    config = yaml.safe_load((tmp_path / "variant" / "model-config.yaml").read_text())
    assert (config["minWorkers"], config["batchSize"], config["maxBatchDelay"]) == (2, 32, 7)
    varied = load_spec(tmp_path / "variant" / "ensemble" / "ensemble.yaml")
    assert varied.serving == serving
    assert varied.runtime.threads == 3
    assert varied.members == spec.members


def test_the_choice_is_written_and_comments_stay(tmp_path: Path) -> None:
    probes(tmp_path)
    path = tmp_path / "ensemble.yaml"
    path.write_text("# Bright or dark.\n" + path.read_text())
    write_serving(path, {"workers": 2, "batch_size": 16, "max_batch_delay_ms": 1}, threads=4)
    assert path.read_text().startswith("# Bright or dark.\n")
    spec = load_spec(path)
    assert (spec.serving.workers, spec.serving.batch_size) == (2, 16)
    assert spec.runtime.threads == 4


def threads_served(archive: Path) -> int:
    """What the worker of an archive would start with."""
    with zipfile.ZipFile(archive) as opened:
        spec = yaml.safe_load(opened.read("ensemble/ensemble.yaml"))
        workers = yaml.safe_load(opened.read("model-config.yaml"))["minWorkers"]
    threads: int = spec.get("runtime", {}).get("threads") or max(
        1, (os.cpu_count() or 1) // workers
    )
    return threads


@pytest.mark.parametrize("runtime", [{}, {"threads": 7}, {"threads": 7, "micro_batch": 4}])
def test_threads_left_out_are_cores_divided_by_workers(
    tmp_path: Path, runtime: dict[str, int]
) -> None:
    """Whatever the spec says, which is one of the settings that are to be compared."""
    folder = tmp_path / "spec"
    folder.mkdir()
    probes(folder, runtime=runtime)
    path = folder / "ensemble.yaml"
    archive, cores = build_archive(path, tmp_path), os.cpu_count() or 1
    for workers, threads, expected in (
        (1, None, cores),
        (2, None, max(1, cores // 2)),
        (2 * cores, None, 1),
        (2, 3, 3),
    ):
        target = tmp_path / "variant.mar"
        variant(archive, target, load_spec(path), ServingChoice(workers, 8, 1, threads))
        assert threads_served(target) == expected, (workers, threads)


@pytest.mark.parametrize(
    ("runtime", "left"),
    [
        ({}, {}),
        ({"threads": 7}, {}),
        ({"threads": 7, "micro_batch": 4}, {"micro_batch": 4}),
    ],
)
def test_a_choice_without_threads_is_written_as_it_was_measured(
    tmp_path: Path, runtime: dict[str, int], left: dict[str, int]
) -> None:
    probes(tmp_path, runtime=runtime)
    path = tmp_path / "ensemble.yaml"
    write_serving(path, {"workers": 2, "batch_size": 16, "max_batch_delay_ms": 1}, threads=None)
    assert yaml.safe_load(path.read_text())["runtime"] == {"engine": "torch"} | left
    assert load_spec(path).runtime.threads is None


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that gives every request one answer; its address, and what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert b'name="file"' in body
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def slowly_answering(seconds: float) -> Iterator[str]:
    """A server that takes its time over each request; its address."""
    pause = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            pause.wait(seconds)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_load_is_counted() -> None:
    with answering(200) as (address, asked):
        target = LoadTarget(address, ("/predictions/trees",), token="secret")
        measurement = closed_loop(target, [b"a", b"b"], clients=3, seconds=0.3, warm_up=0.1)
        found = metrics_of(measurement, 3, "trees")
    assert set(asked) == {("/predictions/trees", "Bearer secret")}
    assert found.clients == 3
    assert 0 < found.images_per_second * 0.2 < len(asked)
    assert 0 < found.p50_ms <= found.p99_ms


def test_a_refused_image_ends_the_load() -> None:
    with answering(415) as (address, _):
        target = LoadTarget(address, ("/predictions/trees",))
        measurement = closed_loop(target, [b"a"], clients=2, seconds=60, stop_at_error=True)
    with pytest.raises(ServerError, match=r"model 'trees': status 415: \{\}"):
        metrics_of(measurement, 2, "model 'trees'")


def test_an_answer_after_the_measured_time_has_its_latency() -> None:
    with slowly_answering(seconds=0.4) as address:
        target = LoadTarget(address, ("/predictions/trees",))
        measurement = closed_loop(target, [b"a"], clients=1, seconds=0.2, warm_up=0)
    assert measurement.errors == {}
    assert metrics_of(measurement, 1, "trees").p99_ms >= 400


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        (range(1, 101), 0.5, 50),
        (range(1, 101), 0.99, 99),
        ([2, 1], 0.5, 1),
        ([3], 0.99, 3),
        ([], 0.5, None),
    ],
)
def test_percentiles_are_nearest_ranks(
    values: Sequence[float], share: float, expected: float | None
) -> None:
    assert percentile(list(values), share) == expected
