"""Searching the log: what is found by which condition, in which order, by which plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from audit import auditor_commands, indexer, read_commands
from estcore.messages.audit import Actor, AuditRecord, RecordItem, Target
from estcore.messages.audit_queries import ARGUMENTS
from estcore.messages.topics import AUDIT_VERBS
from estcore.runtime.log_search import read_search
from estsuite_testing.audit_stack import AuditWorld, answering
from estsuite_testing.many_records import found
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import signer_stack

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
OPTIONS = {"format": "table", "limit": 50}


def of_issuance(record: Build, number: int, **changes: Any) -> AuditRecord:
    target = Target(
        tenant="clinic",
        service="pump",
        serial="0a1b",
        subject="CN=Pump-7,O=Clinic",
        san=("dns:pump-7.clinic.example", "uri:urn:pump:7"),
    )
    actor = Actor(type="service", subject="secret:pumps", certificate_serial="0c")
    return record(number, action="certificate.issue", target=target, actor=actor, **changes)


@pytest.mark.parametrize("indexed", [True, False])
async def test_each_condition_finds_the_records_that_have_it(
    world: AuditWorld, record: Build, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "_LINGER_S", 0.1)
    if not indexed:
        monkeypatch.setattr("audit.indexer.Indexer._step", _nothing)
    mine = of_issuance(record, 100, correlation_id="call-mine", phase="outcome", outcome="success")
    others = [record(n) for n in range(20)]
    async with world.service(), world.publisher() as publisher:
        await publisher.send(*others[:10], mine, *others[10:])
        await world.wait("select count(*) from record where service = 'ca-signer'", 21)
        if indexed:
            await world.wait("select max(end_index) >= 22 from record_chunk", True)
        for conditions in (
            {"correlation_id": "call-mine"},
            {"serial": "0A:1B"},
            {"serial": "a1b"},
            {"serial": "c"},
            {"name": "pump-7.CLINIC.example"},
            {"name": "dns:pump-7.clinic.example"},
            {"name": "urn:pump:7"},
            {"name": "pump-7"},
            {"name": "CN=Pump-7,O=Clinic"},
            {"principal": "secret:pumps"},
            {"owner": "clinic/pump"},
            {"owner": "clinic"},
            {"action": "certificate.issue"},
            {"phase": "outcome", "outcome": "success", "producer": "ca-signer"},
            {"action": "certificate.issue", "serial": "0a1b", "owner": "clinic"},
        ):
            rows = await found(world, **conditions)
            assert [row["correlation_id"] for row in rows] == ["call-mine"], conditions
        assert await found(world, serial="0a1b", owner="bank") == []
        assert await found(world, name="pump") == []
        denied = await found(world, phase="denied", limit=7)
        assert len(denied) == 20
        indexes = [row["log_index"] for row in denied]
        assert indexes == sorted(indexes, reverse=True)
        assert await found(world, phase="denied", limit=200) == denied


async def _nothing(_: object) -> bool:
    return False


async def test_a_fact_of_a_joined_record_is_found_alone(
    world: AuditWorld, record: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "_LINGER_S", 0.1)
    items = tuple(
        RecordItem(correlation_id=f"item-{n}", target=Target(serial=f"0{n}", tenant=f"t{n}"))
        for n in range(1, 5)
    )
    joined = record(1, items=items, action="certificate.issue", phase="intent", outcome="unknown")
    async with world.service(), world.publisher() as publisher:
        await publisher.send(joined)
        await world.wait("select max(end_index) >= 2 from record_chunk", True)
        (row,) = await found(world, serial="03")
        assert (row["correlation_id"], row["serial"], row["owner"]) == ("item-3", "03", "t3")
        assert await found(world, serial="03", owner="t2") == []
        (row,) = await found(world, correlation_id="item-1", full=True)
        assert row["record"]["target"] == {"serial": "01", "tenant": "t1"}


async def test_the_local_search_is_on_record_with_its_user(
    world: AuditWorld, record: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.service(), world.publisher() as publisher:
        await publisher.send(record(1, reason_code="x", target=Target(subject="CN=\x1b[2J  x")))
        await world.wait("select count(*) from record where service = 'ca-signer'", 1)
        values = {**OPTIONS, "action": "auth.denied"}
        await read_commands.search_log(world.settings(), read_search(values))
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert r"CN=\u001b[2J \u0020x" in shown
        assert re.split("  +", shown.splitlines()[1])[2] == "auth.denied"
        await read_commands.search_log(world.settings(), read_search({**values, "format": "csv"}))
        assert capsys.readouterr().out.startswith("log_index,recorded_at,")
        await read_commands.search_log(world.settings(), read_search({**values, "format": "json"}))
        assert json.loads(capsys.readouterr().out)["reason_code"] == "x"
        await world.wait("select count(*) from record where action = 'audit.search'", 3)
        rows = await found(world, action="audit.search")
        assert all(row["principal"].startswith("os:") for row in rows)


async def test_an_auditor_searches_over_the_bus_and_is_on_record(
    platform: Platform, world: AuditWorld, record: Build, tmp_path: Path
) -> None:
    async with world.service(), world.publisher() as publisher:
        await publisher.send(of_issuance(record, 1), record(2))
        await world.wait("select count(*) from record where service = 'ca-signer'", 2)
    policy = policy_with_operators(tmp_path)
    async with (
        signer_stack(platform, tmp_path, policy_file=policy) as signer,
        answering(world, signer.operations.audit_listener.run) as asked,
    ):
        auditor = await operator(signer, "CN=auditor")
        revoker = await operator(signer, "CN=revoker")
        query = {"serial": "0a1b"}
        command = auditor.command("audit-search", query, service="audit")
        answer = await asked(auditor.sign(command))
        assert answer.result is not None
        (row,) = cast("list[dict[str, Any]]", answer.result["records"])
        assert row["subject"] == "CN=Pump-7,O=Clinic"
        sql = "select announcement from command where command_id = $1"
        (kept,) = await signer.rows(sql, command.command_id)
        on_record = json.loads(kept["announcement"])
        assert on_record["action"] == "operator.audit-search"
        assert on_record["actor"]["rule"] == "auditor"
        assert on_record["details"]["serial"] == "0a1b"
        other = await asked(revoker.sign(revoker.command("audit-search", query, service="audit")))
        assert (other.outcome, other.code, other.result) == ("refused", "command.role", None)
        wrong = auditor.command("audit-search", {"serial": "x"}, service="audit")
        assert (await asked(auditor.sign(wrong))).code == "command.arguments"
        other_service = auditor.command("audit-search", query)
        assert (await asked(auditor.sign(other_service))).code == "command.malformed"
        flipped = bytearray(auditor.sign(auditor.command("audit-search", query, service="audit")))
        flipped[len(flipped) // 2] ^= 1
        assert (await asked(bytes(flipped))).outcome == "refused"


async def test_without_ca_signer_nothing_is_read(
    world: AuditWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditor_commands, "_VERIFIED_WITHIN_S", 0.3)
    async with world.service(), answering(world) as asked:
        answer = await asked(b"no command")
        assert (answer.outcome, answer.result) == ("unavailable", None)


def test_the_topics_and_the_arguments_name_the_same_verbs() -> None:
    assert set(AUDIT_VERBS) == set(ARGUMENTS)
