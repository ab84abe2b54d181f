"""Makes OpenTelemetry spans of batches, if the environment names a receiver for them.

OpenTelemetry is configured by its own environment variables. It is imported only if one of these
switches it on:

- ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``: URL of the receiver;
- ``OTEL_TRACES_EXPORTER=otlp``: the receiver is at OpenTelemetry's default, localhost:4318.

``OTEL_TRACES_EXPORTER=none`` and ``OTEL_SDK_DISABLED=true`` switch it off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from .timeline import BatchTimeline, Stage, StageName

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MS = 2000


class TracedRequest(Protocol):
    """The part of a request that is traced: its headers, by names in lower case, and its id."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def id(self) -> str: ...


class TracedResponse(Protocol):
    """The part of a response that is traced."""

    @property
    def status(self) -> int: ...

    @property
    def error(self) -> str: ...


class Tracer:
    """Makes the spans of each request after its batch was answered, from the batch's timeline."""

    def __init__(self, provider: TracerProvider, attributes: Mapping[str, str]) -> None:
        """Keep the receiver of the spans.

        Args:
            provider: takes the spans.
            attributes: attributes of each request's span.
        """
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("torchserve-ensemble")
        self._propagator = TraceContextTextMapPropagator()
        self._attributes = dict(attributes)

    def trace(
        self,
        timeline: BatchTimeline,
        requests: Sequence[TracedRequest],
        responses: Sequence[TracedResponse],
        member_names: Sequence[str],
    ) -> None:
        """Make a span for each request, and below it spans of the stages and of the members.

        The requests of a batch are computed together. So the stages of a request last as long as
        those of its batch, and the attribute ``ensemble.batch_requests`` tells how many share them.

        Args:
            timeline: the times of the batch.
            requests: its requests; their ``traceparent`` headers name the callers' spans.
            responses: one for each request.
            member_names: names of all members of the ensemble.
        """
        to_epoch = time.time_ns() - time.monotonic_ns()
        for request, response in zip(requests, responses, strict=True):
            span = self._tracer.start_span(
                "ensemble.request",
                context=self._propagator.extract(request.headers),
                kind=self._trace.SpanKind.SERVER,
                start_time=_nanoseconds(timeline.arrived, to_epoch),
            )
            if not span.is_recording():
                continue
            span.set_attributes(
                {
                    **self._attributes,
                    "ensemble.request_id": request.id,
                    "ensemble.batch_requests": len(requests),
                    "http.response.status_code": response.status,
                }
            )
            if response.error:
                span.set_attribute("error.type", response.error)
                if response.status >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)
            below_request = self._trace.set_span_in_context(span)
            for stage in timeline.stages:
                part = self._tracer.start_span(
                    f"ensemble.{stage.name}",
                    context=below_request,
                    start_time=_nanoseconds(stage.start, to_epoch),
                )
                if stage.name is StageName.MEMBERS:
                    self._trace_calls(timeline, stage, part, member_names, to_epoch)
                part.end(_nanoseconds(stage.end, to_epoch))
            span.end(_nanoseconds(timeline.stages[-1].end, to_epoch))

    def _trace_calls(
        self,
        timeline: BatchTimeline,
        stage: Stage,
        parent: Span,
        member_names: Sequence[str],
        to_epoch: int,
    ) -> None:
        """Make the spans of the members' calls of one stage."""
        context = self._trace.set_span_in_context(parent)
        for call in timeline.calls:
            if stage.start <= call.start <= stage.end:
                names = [member_names[member] for member in call.members]
                self._tracer.start_span(
                    f"ensemble.member {' '.join(names)}",
                    context=context,
                    start_time=_nanoseconds(call.start, to_epoch),
                    attributes={"ensemble.members": names, "ensemble.samples": call.num_samples},
                ).end(_nanoseconds(call.end, to_epoch))

    def flush(self) -> None:
        """Send what waits to be sent, within two seconds."""
        self._provider.force_flush(_FLUSH_MS)


def _nanoseconds(seconds: float, to_epoch: int) -> int:
    """Convert ``time.monotonic`` seconds to nanoseconds since 1970."""
    return int(seconds * 1e9) + to_epoch


def load_tracer(environment: Mapping[str, str], attributes: Mapping[str, str]) -> Tracer | None:
    """Make the tracer that the environment asks for; None if it asks for none.

    A worker does not refuse to load because its traces cannot be sent: if OpenTelemetry is not
    installed, this logs how to install it.

    Args:
        environment: the environment variables.
        attributes: attributes of each request's span.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    has_endpoint = any(environment.get(name) for name in _ENDPOINT_VARIABLES)
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or exporter == "none" or not (has_endpoint or exporter):
        return None
    if exporter not in ("", "otlp"):
        logger.error(
            "OTEL_TRACES_EXPORTER=%s: only otlp (OTLP over HTTP) and none are supported; no traces "
            "are sent",
            exporter,
        )
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.error(
            "the environment asks for traces (OTEL_...), and %s is not installed; no traces are "
            "sent: pip install 'torchserve-ensemble[tracing]'",
            error.name,
        )
        return None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES replace what is given here.
    service_name = environment.get("OTEL_SERVICE_NAME", "torchserve-ensemble")
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider, attributes)
