"""est-audit and an OpenTelemetry Collector, by OTLP over gRPC and HTTP, and by syslog over TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from audit.sink_settings import OTLPSink, SinkBase, SyslogSink
from estcore.messages.audit import Target
from estsuite_testing.audit_stack import empty_world, make_record
from estsuite_testing.foreign.collector import Collector, Log
from estsuite_testing.platform import Platform
from estsuite_testing.siem import SIEM

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SUBJECT = 'CN="ä] \\ \n x'


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    server = Collector(tmp_path / "collector", SIEM(tmp_path))
    await server.start()
    yield server
    await server.stop()


def sink_to(collector: Collector, way: str) -> SinkBase:
    certificates = collector.certificates
    common: dict[str, Any] = {
        "name": "collector",
        "ca_file": certificates.ca_file,
        "certificate_file": certificates.certificate_file,
        "key_file": certificates.key_file,
        "batch": 20,
        "timeout_s": 5,
        "backoff_max_s": 0.3,
    }
    if way == "syslog":
        return SyslogSink(kind="syslog", host="127.0.0.1", port=collector.port, **common)
    grpc = f"https://127.0.0.1:{collector.grpc_port}"
    url = grpc if way == "grpc" else f"https://127.0.0.1:{collector.http_port}/v1/logs"
    return OTLPSink(kind="otlp", url=url, protocol=way, **common)


def entry_of(log: Log) -> dict[str, Any]:
    entry = log["body"]
    if isinstance(entry, str):
        entry = json.loads(entry)
    found: dict[str, Any] = entry.get("est", entry)
    return found


def records(collector: Collector) -> dict[str, tuple[Log, dict[str, Any]]]:
    """Each record by its id, with the log record that had it; none came twice."""
    found: dict[str, tuple[Log, dict[str, Any]]] = {}
    for log in collector.logs():
        record = entry_of(log).get("record")
        if record is not None:
            assert record["record_id"] not in found
            found[record["record_id"]] = log, record
    return found


@pytest.mark.parametrize("way", ["grpc", "http", "syslog"])
async def test_a_collector_understands_every_record(
    platform: Platform, tmp_path: Path, collector: Collector, way: str
) -> None:
    world = await empty_world(platform, tmp_path)
    target = Target(tenant="clinic", service="pump", serial="01a2", subject=SUBJECT, san=("dns:a",))
    sent = [make_record(n, target=target, reason_code="policy.no_rule") for n in range(50)]
    wanted = {one.record_id for one in sent}
    async with world.service(sinks=(sink_to(collector, way),)), world.publisher() as publisher:
        await publisher.send(*sent)
        async with asyncio.timeout(60):
            while not wanted <= records(collector).keys():
                await asyncio.sleep(0.2)
    found = records(collector)
    for one in sent:
        log, record = found[one.record_id]
        assert record == one.model_dump(mode="json", exclude_none=True) | {
            "occurred_at": record["occurred_at"]
        }
        attributes = log["attributes"]
        if way == "syslog":
            data = attributes["structured_data"]["estsuite@0"]
            assert (data["serial_number"], data["tenant"]) == ("01a2", "clinic")
            continue
        assert attributes["log.record.uid"] == one.record_id
        assert attributes["estsuite.certificate.serial_number"] == "01a2"
        assert attributes["estsuite.certificate.subject"] == SUBJECT
        assert log["resource"]["service.name"] == "est-audit"
        assert log["severity"] == "info"
