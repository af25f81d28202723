"""OpenTelemetry log records (OTLP 1.5), from ``opentelemetry-proto``.

The SDK's exporter is not used: its queue drops records when it is full. Here the log is the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from audit.formats.entry import Entry, Facts, nanoseconds

_SEVERITY = {"critical": 21, "error": 17, "warning": 13, "notice": 10, "info": 9}
"""Severity numbers of the log data model: FATAL, ERROR, WARN, INFO2, INFO."""
_TRACE_ID_OCTETS = 16


def render(entry: Entry) -> LogRecord:
    """Return an entry as a log record; its body is the entry itself."""
    facts = entry.facts
    return LogRecord(
        time_unix_nano=nanoseconds(facts.occurred_at),
        observed_time_unix_nano=nanoseconds(facts.recorded_at),
        severity_number=_SEVERITY.get(facts.severity, _SEVERITY["info"]),  # type: ignore[arg-type] # an enum's number
        severity_text=facts.severity,
        event_name=facts.action,
        body=AnyValue(string_value=entry.leaf),
        attributes=[_attribute(name, value) for name, value in _attributes(facts) if value],
        trace_id=_trace_id(facts.trace_id),
    )


def request(records: Sequence[LogRecord]) -> ExportLogsServiceRequest:
    """Return the request that exports log records."""
    scope = ScopeLogs(scope=InstrumentationScope(name="estsuite.audit"), log_records=records)
    resource = Resource(attributes=[_attribute("service.name", "est-audit")])
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource, scope_logs=[scope])]
    )


def _attributes(facts: Facts) -> list[tuple[str, Any]]:
    return [
        ("log.record.uid", facts.record_id),
        ("event.outcome", facts.outcome),
        ("estsuite.phase", facts.phase),
        ("estsuite.log_index", facts.log_index),
        ("estsuite.correlation_id", facts.correlation_id),
        ("estsuite.producer", facts.service),
        ("estsuite.instance", facts.instance),
        ("error.type", facts.reason_code),
        ("error.message", facts.reason),
        ("enduser.id", facts.actor),
        ("estsuite.auth_method", facts.auth_method),
        ("client.address", facts.peer_address),
        ("client.port", facts.peer_port),
        ("user_agent.original", facts.user_agent),
        ("estsuite.tenant", facts.tenant),
        ("estsuite.owner", facts.owner),
        ("estsuite.certificate.serial_number", facts.serial),
        ("estsuite.certificate.sha256", facts.fingerprint),
        ("estsuite.certificate.subject", facts.subject),
        ("estsuite.certificate.names", list(facts.names)),
        ("estsuite.issuer", facts.issuer),
        ("estsuite.profile", facts.profile),
        ("estsuite.items", facts.items if facts.items > 1 else None),
    ]


def _attribute(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, list):
        found = AnyValue()
        found.array_value.values.extend(_value(one) for one in value)
        return found
    return AnyValue(string_value=str(value))


def _trace_id(text: str) -> bytes:
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        return b""
    return octets if len(octets) == _TRACE_ID_OCTETS else b""
