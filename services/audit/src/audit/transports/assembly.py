"""Which transport a sink has, and the check of what its settings name."""

from __future__ import annotations

from audit.sink_settings import (
    ElasticsearchSink,
    NATSSink,
    OTLPSink,
    RELPSink,
    SinkSettings,
    SplunkSink,
    SyslogSink,
    TLSSink,
    WebhookSink,
)
from audit.transports.relp import RELPTransport
from audit.transports.syslog import SyslogTransport
from audit.transports.tls_stream import tls_context
from audit.transports.transport import Transport
from estcore.clock import Clock
from estcore.errors import ConfigurationError


def transport_for(sink: SinkSettings, clock: Clock) -> Transport:  # noqa: PLR0911 - one a kind
    """Return a transport that is not open yet.

    Raises:
        ConfigurationError: a library that this kind of sink needs is not installed.
    """
    match sink:
        case SyslogSink():
            return SyslogTransport(sink)
        case RELPSink():
            return RELPTransport(sink)
        case OTLPSink():
            return _otlp(sink, clock)
        case ElasticsearchSink():
            from audit.transports.elasticsearch import ElasticsearchTransport  # aiohttp's client

            return ElasticsearchTransport(sink, clock)
        case SplunkSink():
            from audit.transports.splunk import SplunkTransport  # aiohttp's client

            return SplunkTransport(sink, clock)
        case WebhookSink():
            from audit.transports.webhook import WebhookTransport  # aiohttp's client

            return WebhookTransport(sink, clock)
        case NATSSink():
            from audit.transports.nats_topic import NATSTransport

            return NATSTransport(sink)


def _otlp(sink: OTLPSink, clock: Clock) -> Transport:
    try:
        from audit.transports.otlp import OTLPGRPCTransport, OTLPHTTPTransport

        if sink.protocol == "grpc":
            import grpc.aio  # type: ignore[import-untyped] # noqa: F401 - to know that it is there

            return OTLPGRPCTransport(sink)
        return OTLPHTTPTransport(sink, clock)
    except ImportError as exc:
        raise ConfigurationError(
            f"sink {sink.name}: kind otlp needs the extra estsuite-audit[otlp]"
        ) from exc


def check_sink(sink: SinkSettings, clock: Clock) -> None:
    """Read what the sink's settings name.

    Raises:
        ConfigurationError: a file is missing or unreadable, or a library is not installed.
    """
    transport_for(sink, clock)
    if isinstance(sink, TLSSink):
        try:
            tls_context(sink)
        except OSError as exc:
            raise ConfigurationError(f"sink {sink.name}: {exc}") from exc
