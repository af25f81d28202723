"""OpenTelemetry traces that cross NATS: W3C ``traceparent`` in every message.

The decision to sample is taken once, where a trace starts; an unsampled request makes no span
at all (one span costs about 50 µs). Parts of a span (``step``) say where its time went. Log lines
that are written in a span have its ids.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from estcore.errors import ConfigurationError
from estcore.runtime import logs
from estcore.runtime.settings import TelemetrySettings

_TRACER = "estsuite"
_PARTS = 4
_NOTHING = nullcontext()
_tracer: trace.Tracer | None = None
"""That of the process, once it records."""


class Tracing:
    """The tracer of a service. Without an endpoint nothing is recorded, contexts still travel."""

    def __init__(self, settings: TelemetrySettings, service: str, instance: str) -> None:
        self._ratio = settings.trace_ratio if settings.otlp_endpoint else 0.0
        self._provider: TracerProvider | None = None
        if settings.otlp_endpoint:
            self._provider = _provider(settings.otlp_endpoint, service, instance)
            self._tracer = self._provider.get_tracer(_TRACER)
            _record_steps(self._tracer)

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

    @contextmanager
    def in_trace(self, name: str, trace_id: str, **attributes: str | int) -> Iterator[None]:
        """Record a span in a sampled trace of which only the id is known.

        It appears beside the other spans of its trace: the one it follows from is not known.
        """
        own_id = random.getrandbits(64) or 1
        context = parse_traceparent(f"00-{trace_id}-{own_id:016x}-01")
        if self._provider is None or context is None:
            yield
            return
        parent = trace.set_span_in_context(NonRecordingSpan(context))
        with self._tracer.start_as_current_span(
            name, context=parent, kind=SpanKind.PRODUCER, attributes=attributes
        ):
            yield

    @property
    def recording(self) -> bool:
        """Spans are recorded for requests that are sampled."""
        return self._provider is not None

    def close(self) -> None:
        """Send what is waiting and stop. Blocks; call it in a thread."""
        if self._provider is not None:
            self._provider.shutdown()


def step(name: str, **attributes: str | int) -> AbstractContextManager[object]:
    """Record a part of the span in progress; nothing where none is recorded."""
    if _tracer is None or not trace.get_current_span().is_recording():
        return _NOTHING
    return _tracer.start_as_current_span(name, attributes=attributes)


def _record_steps(tracer: trace.Tracer) -> None:
    global _tracer
    _tracer = tracer
    logs.use_trace(_ids)


def _ids() -> dict[str, str]:
    """Return the ids of the span in progress, for a log line."""
    own = trace.get_current_span().get_span_context()
    if not own.is_valid:
        return {}
    return {"trace_id": f"{own.trace_id:032x}", "span_id": f"{own.span_id:016x}"}


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
