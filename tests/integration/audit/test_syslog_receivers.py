"""rsyslog, by syslog over TLS and by RELP, and syslog-ng: every field of every record is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from audit.sink_settings import RELPSink, SyslogSink
from estcore.messages.audit import AuditRecord, Target
from estsuite_testing.audit_stack import AuditWorld
from estsuite_testing.siem import SIEM
from estsuite_testing.syslog_servers import Rsyslog, SyslogNG, SyslogServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]
Build = Callable[..., AuditRecord]


@pytest.fixture
async def rsyslog(tmp_path: Path) -> AsyncIterator[Rsyslog]:
    server = Rsyslog(tmp_path / "rsyslog", SIEM(tmp_path))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def syslog_ng(tmp_path: Path) -> AsyncIterator[SyslogNG]:
    server = SyslogNG(tmp_path / "syslog-ng", SIEM(tmp_path))
    await server.start()
    yield server
    await server.stop()


def sink_values(server: SyslogServer, **changes: Any) -> dict[str, Any]:
    certificates = server.certificates
    return {
        "name": "siem",
        "host": "127.0.0.1",
        "ca_file": certificates.ca_file,
        "certificate_file": certificates.certificate_file,
        "key_file": certificates.key_file,
        "batch": 20,
        "timeout_s": 5,
        "backoff_max_s": 0.3,
        **changes,
    }


def varied(record: Build, number: int) -> AuditRecord:
    """A record with what parsers trip over: quotes, brackets, umlauts, line breaks."""
    target = Target(
        tenant="clinic", service="pump", serial="01a2", subject='CN="ä] \\ \n x', san=("dns:a",)
    )
    return record(number, target=target, reason_code="policy.no_rule", reason='no "rule" [7]')


async def until(check: Callable[[], bool], what: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(30):
            while not check():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(what()) from None


def records(server: SyslogServer) -> list[dict[str, Any]]:
    lines = [line.get("est", line) for line in server.lines()]
    return [line["record"] for line in lines if "record" in line]


def ids(server: SyslogServer) -> list[str]:
    return [record["record_id"] for record in records(server)]


async def test_rsyslog_parses_every_field_of_every_record(
    world: AuditWorld, record: Build, rsyslog: Rsyslog
) -> None:
    sent = [varied(record, n) for n in range(40)]
    sink = SyslogSink(**sink_values(rsyslog, port=rsyslog.port))
    async with world.service(sinks=(sink,)), world.publisher() as publisher:
        await publisher.send(*sent)
        wanted = [r.record_id for r in sent]
        await until(lambda: set(wanted) <= set(ids(rsyslog)), lambda: rsyslog.unparsed()[:2000])
        await until(lambda: any("checkpoint" in line for line in rsyslog.lines()), str)
    assert rsyslog.unparsed() == ""
    own = {r["record_id"]: r for r in records(rsyslog)}
    for one in sent:
        shown = own[one.record_id]
        assert shown == one.model_dump(mode="json", exclude_none=True) | {
            "occurred_at": shown["occurred_at"]
        }
    data = [line["rfc5424-sd"]["estsuite@0"] for line in rsyslog.lines()]
    searched = next(d for d in data if d["record_id"] == wanted[0])
    assert searched["serial_number"] == "01a2"
    assert (searched["tenant"], searched["service"]) == ("clinic", "pump")
    assert (searched["severity"], searched["reason_code"]) == ("info", "policy.no_rule")


async def test_RELP_loses_nothing_when_rsyslog_is_killed(
    world: AuditWorld, record: Build, rsyslog: Rsyslog
) -> None:
    """Each message is acknowledged; what is sent again has the same record id."""
    sent = [varied(record, n) for n in range(300)]
    sink = RELPSink(kind="relp", **sink_values(rsyslog, port=rsyslog.relp_port))
    async with world.service(sinks=(sink,)), world.publisher() as publisher:
        await publisher.send(*sent[:100])
        await until(lambda: len(ids(rsyslog)) >= 20, lambda: rsyslog.unparsed()[:2000])
        await rsyslog.stop(kill=True)
        await publisher.send(*sent[100:200])
        await rsyslog.start()
        await publisher.send(*sent[200:])
        wanted = [r.record_id for r in sent]
        await until(lambda: set(wanted) <= set(ids(rsyslog)), lambda: len(ids(rsyslog)))
    first = list(dict.fromkeys(ids(rsyslog)))
    assert [key for key in first if key in set(wanted)] == wanted
    assert rsyslog.unparsed() == ""


async def test_syslog_ng_parses_every_record(
    world: AuditWorld, record: Build, syslog_ng: SyslogNG
) -> None:
    sent = [varied(record, n) for n in range(40)]
    sink = SyslogSink(**sink_values(syslog_ng, port=syslog_ng.port))
    async with world.service(sinks=(sink,)), world.publisher() as publisher:
        await publisher.send(*sent)
        wanted = [r.record_id for r in sent]
        await until(
            lambda: set(wanted) <= set(ids(syslog_ng)),
            lambda: (syslog_ng.unparsed()[:1000], syslog_ng.lines()[:1]),
        )
    assert syslog_ng.unparsed() == ""
    own = {r["record_id"]: r for r in records(syslog_ng)}
    assert own[wanted[0]]["target"]["subject"] == 'CN="ä] \\ \n x'
    assert own[wanted[0]]["target"]["serial"] == "01a2"
