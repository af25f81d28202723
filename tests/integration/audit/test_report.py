"""Reports of a period: what is in them, that they are signed, and that an export gives the same."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit import auditor_commands, commands, read_commands
from estclient import cli
from estclient.operators.audit_log import unpacked
from estcore.errors import Conflict
from estcore.messages.audit import Actor, AuditRecord, Target
from estcore.messages.audit_queries import AuditTail
from estcore.messages.commands import CommandAnswered
from estcore.runtime.log_search import read_search
from estcore.tlog.activity import Period
from estsuite_testing.audit_stack import AuditWorld, answering
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import signer_stack

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
HOSTILE = "CN=<script>alert(1)</script>\u202e"
ADA = Actor(type="human", subject="certificate:issuing/CN=Ada", rule="ada", auth_method="command")


def story(record: Build) -> list[AuditRecord]:
    """An approval, its certificate, a refusal, a revocation and a search of an auditor."""
    target = Target(subject=HOSTILE, spki_sha256="ab", tenant="clinic", service="pump")
    got = target.model_copy(update={"serial": "0a1b", "san": ("dns:pump.example",)})
    done: dict[str, Any] = {"phase": "outcome", "outcome": "success"}
    return [
        record(1, action="operator.request-approve", actor=ADA, target=target, **done),
        record(2, action="certificate.issue", target=got, **done),
        record(3, action="auth.denied", reason_code="policy.no_rule", reason="=1+1"),
        record(
            4,
            action="operator.certificate-revoke",
            actor=ADA,
            target=got,
            details={"reason": "keyCompromise"},
            **done,
        ),
        record(
            5,
            action="operator.audit-search",
            actor=ADA,
            target=Target(),
            details={"serial": "0a1b"},
            **done,
        ),
    ]


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


async def test_a_report_says_who_did_what_and_an_export_gives_the_same(
    world: AuditWorld, record: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, signed, again = world.settings(), tmp_path / "signed", tmp_path / "again"
    async with world.service(), world.publisher() as publisher:
        await publisher.send(*story(record))
        search = {"format": "json", "limit": 5, "serial": "0a1b"}
        await read_commands.search_log(settings, read_search(search))
        await world.wait("select count(*) from record where action = 'audit.search'", 1)
        until = await world.value("select max(recorded_at) + interval '1 ms' from record")
        period = Period(until - dt.timedelta(days=1), until)
        later = Period(period.since, until + dt.timedelta(days=1))
        with pytest.raises(Conflict, match="not over"):
            await read_commands.report_on(settings, later, tmp_path / "x")
        await world.wait(
            "select max(c.size) >= max(log_index) + 1 from checkpoint c, record"
            " where action = 'audit.search'",
            True,
        )
        await read_commands.report_on(settings, period, signed)
        log = tmp_path / "log.jsonl"
        await commands.export_log(settings, log, None, sealed=True)
    (issued,) = rows(signed, "issued")
    assert (issued["serial"], issued["owner"], issued["approved by"]) == (
        "0a1b",
        "clinic/pump",
        "ada",
    )
    (approved,) = rows(signed, "approvals")
    assert (approved["operator"], approved["action"]) == ("ada", "operator.request-approve")
    (refused,) = rows(signed, "refused")
    assert (refused["code"], refused["reason"]) == ("policy.no_rule", "'=1+1")
    (revoked,) = rows(signed, "revoked")
    assert (revoked["operator"], revoked["reason"]) == ("ada", "keyCompromise")
    reads = rows(signed, "reads")
    assert [row["action"] for row in reads] == ["operator.audit-search", "audit.search"]
    assert reads[1]["operator"].startswith("os:")
    page = (signed / "activity.html").read_text()
    assert "<script" not in page
    assert "\u202e" not in page
    assert "0a1b" in page
    times = ["--from", period.since.isoformat(), "--to", period.until.isoformat()]
    made = ["audit", "report", *times, "--export", str(log), "--out", str(again)]
    assert cli.main(made) == 0
    for file in again.iterdir():
        if file.name != "manifest.txt":
            assert file.read_bytes() == (signed / file.name).read_bytes()
    manifest = (signed / "manifest.txt").read_text()
    assert manifest.startswith((again / "manifest.txt").read_text())
    check = ["audit", "verify-report", "--vkey", str(world.vkey), "--report"]
    assert cli.main([*check, str(signed), "--export", str(log)]) == 0
    assert "verified: log test.example/audit" in capsys.readouterr().out
    assert cli.main([*check, str(again)]) == 1
    table = signed / "refused.csv"
    table.write_bytes(table.read_bytes().replace(b"policy.no_rule", b"policy.a_rule"))
    assert cli.main([*check, str(signed)]) == 1
    (signed / "manifest.txt").write_text(manifest.replace("records 0", "records 1"))
    assert cli.main([*check, str(signed)]) == 1


async def test_tail_prints_what_comes_and_nothing_from_before(
    world: AuditWorld, record: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.service(), world.publisher() as publisher:
        await publisher.send(record(1, correlation_id="before"))
        await world.wait("select count(*) from record where service = 'ca-signer'", 1)
        wanted = AuditTail(phase="denied")
        task = asyncio.ensure_future(read_commands.follow_log(world.settings(), wanted, "json"))
        await world.wait("select count(*) from record where action = 'audit.tail'", 1)
        shown = ""
        for number in range(2, 60):
            await publisher.send(record(number, target=Target(subject="CN=\x1b[2Jnew")))
            await asyncio.sleep(0.3)
            shown += capsys.readouterr().out
            if "new" in shown:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "new" in shown
    assert "before" not in shown
    assert "\x1b" not in shown


async def test_an_auditor_gets_a_signed_report_and_an_export_over_the_bus(
    platform: Platform,
    world: AuditWorld,
    record: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parts together are what the verbs on the host write, octet for octet."""
    monkeypatch.setattr(auditor_commands, "_PART", 3000)  # several parts
    settings, signed = world.settings(), tmp_path / "signed"
    policy = policy_with_operators(tmp_path)
    async with world.service(), world.publisher() as publisher:
        await publisher.send(*story(record), *(record(n) for n in range(10, 40)))
        await world.wait("select count(*) from record where service = 'ca-signer'", 35)
        until = await world.value("select max(recorded_at) + interval '1 ms' from record")
        period = Period(until - dt.timedelta(days=1), until)
        await world.wait(
            "select max(c.size) >= (select count(*) from record) from checkpoint c", True
        )
        await read_commands.report_on(settings, period, signed)
    log = tmp_path / "log.jsonl"
    async with (
        signer_stack(platform, tmp_path, policy_file=policy) as signer,
        answering(world, signer.operations.audit_listener.run) as asked,
    ):
        auditor = await operator(signer, "CN=auditor")
        reader = await operator(signer, "CN=reader")

        async def ask(verb: str, who: TestOperator, **arguments: Any) -> CommandAnswered:
            command = who.command(verb, arguments, service="audit")
            answer: CommandAnswered = await asked(who.sign(command), verb)
            return answer

        async def result(verb: str, **arguments: Any) -> dict[str, Any]:
            answer = await ask(verb, auditor, **arguments)
            assert answer.outcome == "done", answer
            assert answer.result is not None
            return answer.result

        times = {"since": period.since.isoformat(), "until": period.until.isoformat()}
        async with asyncio.timeout(20):
            while not (made := await result("audit-report", **times))["ready"]:
                await asyncio.sleep(0.1)
        assert made["manifest"] == (signed / "manifest.txt").read_text()
        for name, size in made["files"].items():
            octets, parts = b"", 0
            while len(octets) < size:
                part = await result("audit-report", file=name, offset=len(octets), **times)
                octets, parts = octets + unpacked(part["part"]), parts + 1
            assert octets == (signed / name).read_bytes()
            assert parts == -(-size // 3000)
        assert len((signed / "activity.html").read_bytes()) > 3000

        text, parts, arguments = b"", 0, dict[str, Any]()
        while True:
            part = await result("audit-export", **arguments)
            text, parts = text + unpacked(part["part"]), parts + 1
            if part["next_record"] is None:
                break
            arguments = {
                "size": part["size"],
                "record": part["next_record"],
                "checkpoint": part["next_checkpoint"],
            }
        assert parts > 5
        assert text.count(b"\n") >= part["size"]

        for verb, more in (("audit-report", times), ("audit-export", {})):
            refused = await ask(verb, reader, **more)
            assert (refused.outcome, refused.code) == ("refused", "command.role")
        missing = await ask("audit-report", auditor, file="passwd", **times)
        assert (missing.outcome, missing.code) == ("refused", "command.unknown")
        ahead = await ask("audit-export", auditor, size=10**9)
        assert (ahead.outcome, ahead.code) == ("refused", "proof.unsealed")
        later = {**times, "until": (until + dt.timedelta(days=9)).isoformat()}
        assert (await ask("audit-report", auditor, **later)).code == "report.unsealed"
        turned = {"since": times["until"], "until": times["since"]}
        assert (await ask("audit-report", auditor, **turned)).code == "command.arguments"
        await commands.export_log(settings, log, None, sealed=False)
    whole = log.read_bytes().splitlines(keepends=True)
    by_bus = text.splitlines(keepends=True)
    assert by_bus[1:] == whole[1 : len(by_bus)]
    log.write_bytes(text)
    verify = ["audit", "verify", "--vkey", str(world.vkey), "--export", str(log)]
    assert cli.main(verify) == 0
