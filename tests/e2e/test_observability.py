"""Metrics, traces and the log of requests of a real TorchServe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from probe_ensemble import image

from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.monitoring.alerts import ALERTS
from torchserve_ensemble.serving.monitoring.dashboard import PANELS
from torchserve_ensemble.serving.monitoring.names import names_in, series_names
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GENERATED = {
    "--dashboard": "deploy/grafana-dashboard.json",
    "--alerts": "deploy/prometheus-alerts.yml",
    "--markdown": "docs/metrics.md",
}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.M)


class Receiver(ThreadingHTTPServer):
    """A receiver of OTLP over HTTP, which keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self.traces: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received = ExportTraceServiceRequest.FromString(body)
                for resource in received.resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans += [span.name for span in scope.spans]
                        receiver.traces |= {span.trace_id.hex() for span in scope.spans}
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def endpoint(
    probe_store: Path, run_folder: Path, receiver: Receiver
) -> Iterator[tuple[Server, str]]:
    """A server that traces and logs requests, and the URL of its metrics."""
    overrides = throw_away()
    settings = ServerSettings(probe_store, ("probes-1.0.mar",), overrides=overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("TS_ENSEMBLE_REQUEST_LOG", "json")
        with Server.start(settings, run_folder) as server:
            server.wait_ready()
            yield server, f"{overrides['metrics_address']}/metrics"


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """Read the endpoint: (name, values of labels other than the model's) -> value."""
    values = {}
    for name, labels, value in _LINE.findall(requests.get(url, timeout=30).text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        own = [v for k, v in pairs.items() if k not in ("model_name", "model_version", "Hostname")]
        values[(name, *own)] = float(value)
    return values


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def post(server: Server, body: bytes, **headers: str) -> requests.Response:
    return requests.post(
        f"{server.inference_address}/predictions/probes", data=body, headers=headers, timeout=60
    )


def test_what_clients_sent_adds_up_at_the_endpoint(endpoint: tuple[Server, str]) -> None:
    server, url = endpoint
    before = metrics(url)
    levels = [0.1, 0.3, 0.6, 0.9]
    for level in levels:
        assert post(server, image(level)).status_code == 200
    assert post(server, b"no image").status_code == 400

    def added(*key: str) -> float:
        return metrics(url)[key] - before[key]

    wait_until(lambda: added("ensemble_requests_total", "400") == 1, "the last request is missing")
    assert added("ensemble_requests_total", "200") == 4
    assert added("ensemble_errors_total", "SampleError") == 1
    assert added("ensemble_samples_total") == 4
    assert added("ensemble_batch_requests_sum") == 5
    assert added("ensemble_batch_seconds_bucket", "+Inf") == added("ensemble_batch_seconds_count")
    # A majority of the bounds 0.25, 0.5 and 0.75; they agree on 0.1 and 0.9 alone.
    assert added("ensemble_predictions_total", "bright") == 2
    assert added("ensemble_predictions_total", "dark") == 2
    assert added("ensemble_disagreements_total") == 2
    assert added("ensemble_member_samples_total", "a") == 4
    assert 0 < added("ensemble_member_seconds_total", "a") < 60
    assert metrics(url)["ensemble_worker_loads_total",] == 1


def test_every_name_that_is_used_exists_at_the_endpoint(
    endpoint: tuple[Server, str], run_folder: Path
) -> None:
    server, url = endpoint
    # TorchServe's own metrics of a version appear with its first request, and those of refusals
    # with the first refusal.
    post(server, image(0.5))
    requests.get(f"{server.inference_address}/predictions/none", timeout=30)
    # Without a worker TorchServe itself answers 503.
    scale = ["scale", "probes", "--run-folder", str(run_folder)]
    assert main([*scale, "0"]) == 0
    assert post(server, image(0.5)).status_code == 503
    assert main([*scale, "1"]) == 0
    used = {
        name
        for expression in (
            *(alert.expression for alert in ALERTS),
            *(query for panel in PANELS for query in panel.queries),
        )
        for name in names_in(expression)
    }
    assert len(used) > 20
    assert used <= series_names()
    wait_until(lambda: used <= {key[0] for key in metrics(url)}, f"missing: {used}")
    assert series_names() <= {key[0] for key in metrics(url)}


def test_metric_lines_do_not_fill_the_log(endpoint: tuple[Server, str], run_folder: Path) -> None:
    post(endpoint[0], image(0.5))
    log = (run_folder / "logs" / "server.log").read_text()
    assert "result=[METRICS]" not in log
    assert "Worker cmdline" in log


def test_each_request_has_a_line_of_json(endpoint: tuple[Server, str], run_folder: Path) -> None:
    server, _ = endpoint
    answer = post(server, b"no image", traceparent=f"00-{TRACE}-{SPAN}-01")
    path = run_folder / "logs" / "requests.jsonl"
    request_id = answer.headers["x-request-id"]
    wait_until(lambda: request_id in path.read_text(), "the request is not logged")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (line,) = [line for line in lines if line["request_id"] == request_id]
    assert (line["model"]["name"], line["model"]["version"]) == ("probes", "1.0")
    assert re.fullmatch(r"(sha256:)?[0-9a-f]{64}", line["model"]["archive"])
    assert (line["status"], line["error"], line["trace_id"]) == (400, "SampleError", TRACE)
    assert "request_log" not in (run_folder / "logs" / "server.log").read_text()


def test_spans_reach_a_receiver(endpoint: tuple[Server, str], receiver: Receiver) -> None:
    server, _ = endpoint
    receiver.spans.clear()
    trace = "1" * 32
    assert post(server, image(0.5), traceparent=f"00-{trace}-{SPAN}-01").status_code == 200
    wait_until(lambda: trace in receiver.traces, "no span has come")
    wait_until(lambda: "ensemble.request" in receiver.spans, "the request's span is missing")
    assert {"ensemble.decode", "ensemble.members", "ensemble.policy"} <= set(receiver.spans)
    assert any(name.startswith("ensemble.member ") for name in receiver.spans)


@pytest.mark.parametrize(("option", "file"), GENERATED.items())
def test_generated_files_are_those_of_the_list(
    option: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", option]) == 0
    assert capsys.readouterr().out == (ROOT / file).read_text(), f"write {file} again"


def test_promtool_accepts_the_alert_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    checked = subprocess.run(
        [promtool, "check", "rules", ROOT / GENERATED["--alerts"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
