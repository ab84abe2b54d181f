"""Tests of the benchmarks' own code, without a TorchServe and without asserting a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import load, report
from benchmarks.ensembles import ENSEMBLES, parity
from benchmarks.peers.starting import labels_of
from benchmarks.report import BASELINE, Load, Measurements, Result, Server
from torchserve_ensemble.serving.load import (
    LoadClient,
    LoadMeasurement,
    LoadTarget,
    arrival_times,
    closed_loop,
    encode,
    open_loop,
)


class _Echo(BaseHTTPRequestHandler):
    """Answers each request with a description of what it received."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = BytesParser().parsebytes(header + body)
        parts = [part for part in form.walk() if not part.is_multipart()]
        content: dict[str, Any] = {
            "path": self.path,
            "type": form.get_content_type(),
            "bytes": len(body),
            "parts": [
                [part.get_param("name", header="content-disposition"), part.get_payload()]
                for part in parts
            ],
        }
        answer = json.dumps(content).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_form_has_fields_and_every_image(address: str) -> None:
    target = LoadTarget(address, ("/predict",), fields={"response": "flexserve"})
    (answer,) = LoadClient(target).ask(encode(target, [b"one", b"two"]))
    received = json.loads(answer)
    assert received["type"] == "multipart/form-data"
    assert received["parts"] == [["response", "flexserve"], ["file", "one"], ["file", "two"]]


def test_raw_bodies_go_to_every_path_for_every_image(address: str) -> None:
    target = LoadTarget(address, ("/a", "/b"), "raw", image_type="image/png")
    answers = [json.loads(a) for a in LoadClient(target).ask(encode(target, [b"1", b"22"]))]
    assert [(a["path"], a["bytes"]) for a in answers] == [
        ("/a", 1),
        ("/a", 2),
        ("/b", 1),
        ("/b", 2),
    ]
    assert answers[0]["type"] == "image/png"


def test_closed_loop_counts_images_and_leaves_the_warm_up_out(address: str) -> None:
    target = LoadTarget(address, ("/predict",))
    measured = closed_loop(target, [b"x"] * 4, clients=2, size=2, seconds=0.2, warm_up=0.2)
    assert measured.errors == {}
    assert measured.images > 0
    assert measured.latencies_ms
    assert measured.images_all > measured.images


def test_open_loop_sends_what_is_scheduled(address: str) -> None:
    target = LoadTarget(address, ("/predict",))
    measured = open_loop(target, [b"x"], rate=50, arrivals="fixed", size=1, seconds=0.2)
    assert measured.images == len(measured.latencies_ms) == 10
    assert measured.seconds >= 0.2


@pytest.mark.parametrize("path", ["/broken", "unreachable"])
def test_errors_are_counted_by_reason(address: str, path: str) -> None:
    target = LoadTarget(address if path == "/broken" else "http://127.0.0.1:9", ("/broken",))
    measured = open_loop(target, [b"x"], rate=100, arrivals="fixed", size=1, seconds=0.05)
    assert measured.images == 0
    assert sum(measured.errors.values()) == 5


def test_arrivals_are_the_same_each_time_and_as_many_as_the_rate_says() -> None:
    moments = arrival_times(100, "poisson", 20)
    assert moments == arrival_times(100, "poisson", 20)
    assert moments == sorted(moments)
    assert 1800 < len(moments) < 2200


def test_command_line_of_the_load_generator(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").write_bytes(b"x")
    target = LoadTarget(address, ("/predict",), fields={"response": "flexserve"})
    options = ["--images", str(tmp_path), "--seconds", "0.1", "--warm-up", "0"]
    load.main([*load.arguments_of(target), *options])
    measured = LoadMeasurement(**json.loads(capsys.readouterr().out))
    assert measured.images > 0
    assert measured.errors == {}


def test_answers_in_all_formats_give_the_same_labels() -> None:
    members = ("a", "b")
    form = LoadTarget("", ("/predict",))
    by_member = {"a": ["1", "2"], "b": ["3", "4"]}
    assert labels_of(form, members, 2, [json.dumps(by_member).encode()]) == by_member
    by_image = [{"a": "1", "b": "3"}, {"a": "2", "b": "4"}]
    assert labels_of(form, members, 2, [json.dumps(by_image).encode()]) == by_member
    workflow = LoadTarget("", ("/wfpredict/x",), "raw")
    rows = [json.dumps(row).encode() for row in by_image]
    assert labels_of(workflow, members, 2, rows) == by_member
    endpoints = LoadTarget("", ("/a", "/b"), "raw")
    scores = [json.dumps({label: 0.9, "9": 0.1}).encode() for label in "1234"]
    assert labels_of(endpoints, members, 2, scores) == by_member
    with pytest.raises(ValueError, match="not understood"):
        labels_of(form, members, 1, [b'{"a": ["1"]}'])


def test_members_of_digits_are_right_and_have_the_same_weights_each_time(tmp_path: Path) -> None:
    ensemble = ENSEMBLES["digits"]
    two_members = type(ensemble)(ensemble.name, ensemble.members[:2], ensemble.image_type)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        two_members.write_weights(tmp_path / name)
    for member in two_members.members:
        first, second = (
            load_file(tmp_path / name / f"{member}.safetensors") for name in ("first", "second")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    for values in parity(two_members, tmp_path / "first").values():
        assert values["right"] >= 0.95
        assert values["bfloat16 equal"] >= 0.98
        assert values["resize equal"] >= 0.98


def _result() -> Result:
    one, eight = Load(1, 1), Load(8, 1)
    rates = {
        (BASELINE, one): [10.0, 12.0, 11.0],
        ("LitServe", one): [20.0, 20.0, 20.0],
        ("ours, float32", one): [30.0, 40.0, 50.0],
        ("ours, float32", eight): [60.0],
    }
    measurements = []
    for (name, each), values in rates.items():
        measurements.append(Measurements(name, each))
        for value in values:
            measured = LoadMeasurement(int(value), 1, [1.0, 2.0, 3.0], {}, int(value))
            measurements[-1].add(measured, cpu_seconds=value / 100)
    return Result(
        ensemble="digits",
        machine={"cpu": "a|b", "cores": 2, "flags": ["avx2"], "memory_gb": 8, "date": "2000-01-02"},
        versions={"torch": "2"},
        settings={"rounds": 3},
        servers=[
            Server(BASELINE, False, True),
            Server("LitServe", False, True),
            Server("ours, float32", True, True),
            Server("Ray Serve", False, True, problem="not measured: RuntimeError"),
        ],
        measurements=measurements,
    )


def test_medians_spreads_and_ratios() -> None:
    result = _result()
    first = result.measurements[0]
    assert (first.rate, first.spread) == (11.0, (10.0, 12.0))
    assert (first.percentile(0.5), first.percentile(0.99)) == (2.0, 3.0)
    assert first.cpu_ms == [10.0, 10.0, 10.0]
    ratio, alone = result.ratios()
    assert (ratio["best_peer"], ratio["to_best_peer"]) == ("LitServe", 2.0)
    assert ratio["to_flexserve"] == 3.64
    assert (alone["to_best_peer"], alone["to_flexserve"]) == (None, None)


def test_report_is_written_as_tables_and_plot(tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    result = _result()
    stem = report.write(result, tmp_path)
    plots.draw(result, stem.with_suffix(".svg"))
    assert stem.name == "2000-01-02-digits"
    assert json.loads(stem.with_suffix(".json").read_text())["ratios"] == result.ratios()
    written = stem.with_suffix(".md").read_text()
    assert "| LitServe | 20.0 | 20.0-20.0 | 2.00 | 3.00 | 10.00 | 0 |" in written
    assert "not measured: RuntimeError" in written
    assert "a|b, 2 cores" in stem.with_suffix(".svg").read_text()
    report.show(result)
