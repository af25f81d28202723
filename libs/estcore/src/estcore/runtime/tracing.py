"""OpenTelemetry traces that cross NATS: W3C ``traceparent`` in every message.

The decision to sample is taken once, where a trace starts; an unsampled request makes no span
at all (one span costs about 50 µs). At most two spans per service and enrollment.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from estcore.errors import ConfigurationError
from estcore.runtime.settings import TelemetrySettings

_TRACER = "estsuite"
_PARTS = 4


class Tracing:
    """The tracer of a service. Without an endpoint nothing is recorded, contexts still travel."""

    def __init__(self, settings: TelemetrySettings, service: str, instance: str) -> None:
        self._ratio = settings.trace_ratio if settings.otlp_endpoint else 0.0
        self._provider: TracerProvider | None = None
        if settings.otlp_endpoint:
            self._provider = _provider(settings.otlp_endpoint, service, instance)
            self._tracer = self._provider.get_tracer(_TRACER)

    @contextmanager
    def root(self, name: str, **attributes: str | int) -> Iterator[str | None]:
        """Start a trace here, if this request is sampled; yields the traceparent or None."""
        if self._provider is None or random.random() >= self._ratio:  # noqa: S311 - sampling
            yield None
            return
        with self._tracer.start_as_current_span(
            name, context=Context(), kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            own = span.get_span_context()
            yield f"00-{own.trace_id:032x}-{own.span_id:016x}-01"

    @contextmanager
    def span(
        self,
        name: str,
        traceparent: str | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Iterable[str] = (),
        **attributes: str | int,
    ) -> Iterator[str | None]:
        """Record a span under ``traceparent``; yields the traceparent to pass on.

        Yields the one it was given when nothing is recorded.
        """
        context = parse_traceparent(traceparent)
        if self._provider is None or context is None or not context.trace_flags.sampled:
            yield traceparent
            return
        parent = trace.set_span_in_context(NonRecordingSpan(context))
        span_links = [Link(c) for c in map(parse_traceparent, links) if c is not None]
        with self._tracer.start_as_current_span(
            name, context=parent, kind=kind, links=span_links, attributes=attributes
        ) as span:
            own = span.get_span_context()
            yield f"00-{own.trace_id:032x}-{own.span_id:016x}-01"

    def close(self) -> None:
        """Send what is waiting and stop. Blocks; call it in a thread."""
        if self._provider is not None:
            self._provider.shutdown()


def parse_traceparent(text: str | None) -> SpanContext | None:
    """Return the remote span context in a W3C traceparent; None when absent or malformed."""
    parts = (text or "").split("-")
    if len(parts) != _PARTS or len(parts[1]) != 32 or len(parts[2]) != 16:  # noqa: PLR2004
        return None
    try:
        return SpanContext(
            int(parts[1], 16),
            int(parts[2], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(parts[3], 16)),
        )
    except ValueError:
        return None


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id inside a traceparent, for records."""
    return traceparent.split("-")[1] if parse_traceparent(traceparent) and traceparent else None


def exemplar(traceparent: str | None) -> dict[str, str] | None:
    """Return the exemplar that joins a measured value to its trace; None without a trace."""
    found = trace_id(traceparent)
    return None if found is None else {"trace_id": found}


def _provider(endpoint: str, service: str, instance: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
    except ImportError as exc:
        raise ConfigurationError(
            "telemetry.otlp_endpoint needs the extra estsuite-core[otlp]"
        ) from exc
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON)
    provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, timeout=3), schedule_delay_millis=500
        )
    )
    return provider
