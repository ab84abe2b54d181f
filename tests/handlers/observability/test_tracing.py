"""Spans of a batch, with OpenTelemetry's exporter in memory; and that tracing is off by default."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fresh_python import printed_by
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from probe_ensemble import form, image, probes

from torchserve_ensemble.handlers.observability.tracing import Tracer, load_tracer
from torchserve_ensemble.handlers.requests.raw_request import RawRequest

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traced(image_bytes: bytes, flags: str = "01") -> RawRequest:
    return form(image_bytes, headers={"traceparent": f"00-{TRACE}-{SPAN}-{flags}"})


def spans_of(folder: Path, *requests: RawRequest) -> list[ReadableSpan]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = probes(folder)
    service.recorder.start("9000")
    service.recorder.tracer = Tracer(provider, {"ensemble.name": "probes"})
    service.answer(list(requests))
    return list(exporter.get_finished_spans())


def test_a_request_is_traced_through_all_stages_and_members(tmp_path: Path) -> None:
    spans = spans_of(tmp_path, traced(image(0.5)))
    (root,) = [span for span in spans if span.name == "ensemble.request"]
    assert root.parent is not None
    assert root.attributes is not None
    assert f"{root.parent.span_id:016x}" == SPAN
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert root.attributes["http.response.status_code"] == 200
    stages = [span for span in spans if span.parent and span.parent.span_id == root.context.span_id]
    assert [span.name.removeprefix("ensemble.") for span in stages] == [
        "parse", "decode", "members", "policy", "write",
    ]  # fmt: skip
    members = [span for span in spans if span.name.startswith("ensemble.member ")]
    names = {
        name
        for span in members
        for name in (span.attributes or {})["ensemble.members"]  # type: ignore[union-attr]
    }
    assert names == {"a", "b", "c"}
    (stage,) = [span for span in stages if span.name == "ensemble.members"]
    for span in members:
        assert span.parent is not None
        assert span.parent.span_id == stage.context.span_id
    for span in (*stages, *members):
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]


def test_requests_of_a_batch_have_spans_of_their_own(tmp_path: Path) -> None:
    spans = spans_of(tmp_path, traced(image(0.5)), form(b"none"), traced(image(0.5), flags="00"))
    roots = [span for span in spans if span.name == "ensemble.request"]
    # The caller of the third request has not sampled it.
    assert len(roots) == 2
    assert (roots[1].attributes or {})["error.type"] == "SampleError"
    assert roots[1].parent is None


def test_traces_are_off_unless_the_environment_asks(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert load_tracer({}, {}) is None
    assert load_tracer(endpoint | {"OTEL_SDK_DISABLED": "true"}, {}) is None
    assert load_tracer(endpoint | {"OTEL_TRACES_EXPORTER": "none"}, {}) is None
    assert load_tracer({"OTEL_TRACES_EXPORTER": "zipkin"}, {}) is None
    assert "only otlp" in caplog.text
    imported = printed_by(
        "import sys; from torchserve_ensemble.handlers import deployment\n"
        "from torchserve_ensemble.handlers.observability.tracing import load_tracer\n"
        "print(load_tracer({}, {}), any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert imported == ["None False"]


def test_a_missing_package_is_named_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert load_tracer({"OTEL_TRACES_EXPORTER": "otlp"}, {}) is None
    assert "pip install 'torchserve-ensemble[tracing]'" in caplog.text
