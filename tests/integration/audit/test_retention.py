"""G10: a purge refuses what is younger than six years, legal holds win, and each is on record.

The log of these tests was written in 2019, by the parts of the service with a clock of then.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from audit import commands, indexer, proofs, record_decoder, retention_commands, tiles
from audit.chain import Chain
from audit.checkpoint_key import load_key
from audit.checkpoints import Sealer
from audit.export import part as export_part
from audit.packed_leaf import pack, unpack
from audit.purge_orders import Order
from audit.retention import Month
from audit.settings import RetentionSettings
from estclient import cli
from estcore.clock import SystemClock
from estcore.errors import AuditChainBroken, ConfigurationError, Conflict, MalformedRequest
from estcore.messages.audit import Actor, AuditRecord
from estcore.messages.audit_queries import AuditProve, AuditSearch, AuditTail, PurgeProposal
from estcore.messages.commands import CommandAnswered
from estcore.testing.clock import FakeClock
from estcore.tlog import export
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.cosignature import WitnessRequest
from estcore.tlog.proof import verify_consistent
from estcore.tlog.verify import Options, verify
from estsuite_testing.audit_stack import ORIGIN, AuditWorld, answering
from estsuite_testing.many_records import found, index_records
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import signer_stack

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
JANUARY, FEBRUARY, MARCH = (Month(2019, number) for number in (1, 2, 3))
EACH = 300
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)


@pytest.fixture
async def old(world: AuditWorld, record: Build) -> AuditWorld:
    """A log with 300 records in each of three months of 2019, indexed and in tiles."""
    clock = FakeClock(JANUARY.start)
    settings = world.settings()
    sealer = Sealer(settings.checkpoint, load_key(settings.checkpoint), clock)
    connection: Any = await world.superuser()
    try:
        chain = await Chain.load(connection, clock)
        for place, month in enumerate((JANUARY, FEBRUARY, MARCH)):
            await connection.execute("select ensure_month($1)", month.start)
            middle = month.start + dt.timedelta(days=14)
            clock.forward(seconds=(middle - clock.now()).total_seconds())
            numbers = range(place * EACH, (place + 1) * EACH)
            records = [
                record(n, producer_seq=n + 1, occurred_at=clock.now(), correlation_id=f"call-{n}")
                for n in numbers
            ]
            for start in range(0, EACH, 100):
                entries = map(record_decoder.entry_of, records[start : start + 100])
                await chain.append(connection, entries)
                await sealer.seal(connection, chain)
        await index_records(connection)
        for position in range(3 * EACH // tiles.WIDTH):
            await tiles.add_next(connection, position)
    finally:
        await connection.close()
    return world


async def verified(world: AuditWorld, folder: Path) -> dict[str, Any]:
    """The report of a verification of a whole export."""
    out = folder / f"{len(list(folder.iterdir()))}.jsonl"
    await commands.export_log(world.settings(), out, None, sealed=True)
    found = verify(out.read_bytes().splitlines(), Options(now=NOW, key=world.vkey))
    return found.report.to_json()


async def in_parts(connection: Any, vkey: str, octets: int) -> list[bytes]:
    """The lines of a whole export, read in parts."""
    lines: list[bytes] = []
    size, start, checkpoint = None, 0, 0
    while True:
        part = await export_part(
            connection,
            ORIGIN,
            vkey,
            size=size,
            start=start,
            checkpoint_from=checkpoint,
            octets=octets,
        )
        lines += part.lines
        if part.next_record is None:
            return lines
        assert part.lines
        size, start, checkpoint = part.size, part.next_record, part.next_checkpoint or 0


async def archived(world: AuditWorld, folder: Path, month: Month) -> Path:
    out = folder / f"{month}.archive"
    await retention_commands.archive(world.settings(), month, out)
    return out


async def purge(settings: Any, month: Month, file: Path | None, now: dt.datetime) -> None:
    """Purge as two operators ordered it."""
    order = Order("order", str(month), EACH, "certificate:issuing/CN=a", "certificate:issuing/CN=b")
    await retention_commands.purge_month(settings, month, file, now, order)


def after(month: Month, years: int, seconds: int = 0) -> dt.datetime:
    end = month.end.replace(year=month.end.year + years)
    return end + dt.timedelta(seconds=seconds)


async def test_G10_a_month_is_kept_for_six_years_to_the_second(
    old: AuditWorld, tmp_path: Path
) -> None:
    settings = old.settings()
    async with old.service():
        for now in (after(JANUARY, 1), after(JANUARY, 6, -1)):
            with pytest.raises(Conflict, match="must be kept until 2025-02-01") as caught:
                await purge(settings, JANUARY, None, now)
            assert caught.value.code == "retention.too_young"
        assert await old.value("select count(*) from record where action = 'audit.purge'") == 0
        ten = old.settings(retention=RetentionSettings(keep_years=10))
        with pytest.raises(Conflict, match="2029-02-01"):
            await purge(ten, JANUARY, None, after(JANUARY, 6))
        await purge(settings, JANUARY, None, after(JANUARY, 6))
        await old.wait("select count(*) from record where action = 'audit.purge'", 1)
        report = await verified(old, tmp_path)
    assert report["ok"], report["findings"]
    assert report["purged"] == [(0, EACH)]


async def test_G10_a_legal_hold_wins_until_it_is_released(old: AuditWorld) -> None:
    settings, late = old.settings(), after(JANUARY, 50)
    edge = FEBRUARY.start - dt.timedelta(seconds=1)
    async with old.service():
        case = {"name": "case-7", "reason": "litigation"}
        await retention_commands.hold(settings, since=edge, until=MARCH.end, **case)
        with pytest.raises(Conflict, match="a hold called case-7"):
            await retention_commands.hold(settings, since=edge, until=MARCH.end, **case)
        for month in (JANUARY, FEBRUARY, MARCH):
            with pytest.raises(Conflict, match="legal hold: case-7") as caught:
                await purge(settings, month, None, late)
            assert caught.value.code == "retention.held"
        await retention_commands.release(settings, **case)
        with pytest.raises(Conflict, match="no hold"):
            await retention_commands.release(settings, **case)
        await purge(settings, JANUARY, None, late)
        actions = (
            "select count(*) from record where action in ('audit.hold', 'audit.hold_released')"
        )
        await old.wait(actions, 4)
    assert await old.value("select to_regclass('record_201901')") is None


async def test_a_purged_month_still_verifies_and_is_restored_from_its_archive(
    old: AuditWorld, record: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, vkey = old.settings(), str(old.vkey)
    kept = str(await old.value("select note from checkpoint where size = 100"))
    async with old.service():
        file = await archived(old, tmp_path, FEBRUARY)
        assert cli.main(["audit", "verify", "--export", str(file), "--vkey", vkey]) == 0
        assert "300, the archive of 2019-02" in capsys.readouterr().out
        await purge(settings, FEBRUARY, file, NOW)
        assert await found(old, correlation_id="call-450") == []
        assert len(await found(old, correlation_id="call-850")) == 1
        out = tmp_path / "log.jsonl"
        await old.wait("select count(*) from record where action = 'audit.purge'", 1)
        await commands.export_log(settings, out, None, sealed=True)
        assert cli.main(["audit", "verify", "--export", str(out), "--vkey", vkey]) == 0
        assert "purged            records 300 to 599" in capsys.readouterr().out
        for seed in range(40):
            assert_one_finding(list(io.BytesIO(out.read_bytes())), old, random.Random(seed))
        connection: Any = await old.superuser()
        try:
            for octets in (1, 2000, 20_000, 10**9):
                assert await in_parts(connection, vkey, octets) == out.read_bytes().splitlines()
            with pytest.raises(Conflict, match="was purged"):
                await proofs.inclusion(connection, 450)
            (await proofs.inclusion(connection, 850)).verify(old.vkey)
            request: WitnessRequest = await proofs.consistency(connection, 100)
            verify_consistent(request, parse_signed(kept), old.vkey)
        finally:
            await connection.close()
        async with old.publisher() as publisher:
            # Delivered again after seven years: its id is known, its content is not.
            await publisher.send(record(450), record(5_000))
            await old.wait("select count(*) from record where recorded_at > '2026-01-01' and"
                           " service = 'ca-signer'", 1)  # fmt: skip
        assert await old.value("select count(*) from record where action = 'audit.conflict'") == 0
        await retention_commands.restore(settings, file)
        with pytest.raises(Conflict, match="not purged"):
            await retention_commands.restore(settings, file)
        assert len(await found(old, correlation_id="call-450")) == 1
        report = await verified(old, tmp_path)
        assert report["ok"], report["findings"]
        assert report["purged"] == []
        await old.wait("select count(*) from record where action = 'audit.restore'", 2)


async def test_any_change_of_an_archive_is_found_and_it_purges_nothing(
    old: AuditWorld, tmp_path: Path
) -> None:
    async with old.service():
        file = await archived(old, tmp_path, FEBRUARY)
        lines = file.read_bytes().splitlines(keepends=True)
        changes = {
            "flipped": [*lines[:50], lines[50].replace(b"denied", b"dented"), *lines[51:]],
            "dropped": lines[:50] + lines[51:],
            "swapped": [*lines[:50], lines[51], lines[50], *lines[52:]],
            "cut": lines[:100],
            "edge": [lines[0], lines[1].replace(b"0", b"1", 1), *lines[2:]],
            "header": [lines[0].replace(b"2019-02", b"2019-01"), *lines[1:]],
            "unsigned": lines[:-1],
        }
        settings = old.settings()
        for seed in range(40):
            assert_one_finding(lines, old, random.Random(seed))
        for name, changed in changes.items():
            assert changed != lines, name
            file.write_bytes(b"".join(changed))
            with pytest.raises(AuditChainBroken):
                await purge(settings, FEBRUARY, file, NOW)
        # The last record as a hash only: a valid archive, but not of the whole month.
        leaf = export.read_line(lines[-2].strip())
        assert leaf["type"] == "record"
        header = lines[0].replace(b'"records":300', b'"records":299')
        (short,) = export.purged_lines(leaf["log_index"], [bytes.fromhex(leaf["leaf_hash"])])
        file.write_bytes(b"".join([header, *lines[1:-2], short + b"\n", lines[-1]]))
        with pytest.raises(AuditChainBroken, match="not of all records"):
            await purge(settings, FEBRUARY, file, NOW)
        assert await old.value("select count(*) from purge") == 0


def assert_one_finding(lines: list[bytes], world: AuditWorld, chosen: random.Random) -> None:
    """Flip a bit anywhere: one finding, at that line or at what is compared with it."""
    octets = bytearray(b"".join(lines))
    bit = chosen.randrange(len(octets) * 8)
    octets[bit // 8] ^= 1 << bit % 8
    report = verify(list(io.BytesIO(octets)), Options(now=NOW, key=world.vkey)).report
    assert not report.ok, bit
    # Hashes without content are confirmed by the chain behind them and by checkpoints: two places.
    assert len(report.findings) <= 2, report.findings[:5]


async def test_a_changed_record_is_not_purged(old: AuditWorld) -> None:
    connection: Any = await old.superuser()
    try:
        await connection.execute("alter table record disable trigger no_change")
        await connection.execute("alter table record_201901 disable trigger all")
        packed = await connection.fetchval("select packed_leaf from record where log_index = 7")
        changed = pack(unpack(packed).replace("denied", "dented"))
        assert changed != packed
        await connection.execute("update record set packed_leaf = $1 where log_index = 7", changed)
    finally:
        await connection.close()
    async with old.service():
        with pytest.raises(AuditChainBroken, match="not what was signed"):
            await purge(old.settings(), JANUARY, None, NOW)
    assert await old.value("select count(*) from purge") == 0


async def test_records_removed_without_a_recorded_purge_are_found(
    old: AuditWorld, tmp_path: Path
) -> None:
    """An administrator of the database drops a month, and notes it as the purge would."""
    connection: Any = await old.superuser()
    try:
        await connection.execute("drop table record_201902")
        await connection.execute(
            "insert into purge (first_index, end_index, month, purged_at)"
            " values (300, 600, '201902', now())"
        )
    finally:
        await connection.close()
    async with old.service():
        report = await verified(old, tmp_path)
    assert [found["code"] for found in report["findings"]] == ["purge.unrecorded"]
    assert report["findings"][0]["place"] == "records 300 to 599"


async def test_the_services_role_cannot_purge_or_release(old: AuditWorld) -> None:
    connection: Any = await old.runtime()
    try:
        for statement in (
            "drop table record_201901",
            "delete from record_chunk",
            "insert into purge values (0, 300, '201901', now(), null)",
            "insert into legal_hold values ('x', now(), now() + interval '1 d', 'r', now(), 'b')",
            "update legal_hold set released_at = now()",
        ):
            with pytest.raises(Exception, match=r"permission denied|must be owner"):
                await connection.execute(statement)
    finally:
        await connection.close()
    settings = old.settings()
    database = settings.database.model_copy(update={"migration_url": None})
    async with old.service():
        with pytest.raises(ConfigurationError, match="migration_url"):
            await purge(settings.model_copy(update={"database": database}), JANUARY, None, NOW)


def test_less_than_six_years_needs_a_legal_basis() -> None:
    with pytest.raises(ValidationError, match=r"164\.316"):
        RetentionSettings(keep_years=5)
    with pytest.raises(ValidationError):
        RetentionSettings(keep_years=5, legal_basis="because")
    short = RetentionSettings(keep_years=5, legal_basis="state law, opinion of counsel 2026-17")
    assert short.keep_years == 5


async def test_status_lists_months_holds_and_purges(
    old: AuditWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = old.settings()
    async with old.service():
        await purge(settings, JANUARY, None, NOW)
        case = {"name": "case-7", "reason": "litigation"}
        await retention_commands.hold(settings, since=MARCH.start, until=MARCH.end, **case)
        capsys.readouterr()
        await retention_commands.status(settings)
    shown = capsys.readouterr().out
    assert "2019-02\t300 records\tmay be purged" in shown
    assert "2019-03\t300 records\theld by case-7" in shown
    assert "2019-01\trecords 0 to 299\tpurged" in shown
    assert json.dumps("litigation")[1:-1] in shown


def test_the_indexer_cuts_chunks_at_months() -> None:
    start = FEBRUARY.start - dt.timedelta(seconds=1)
    rows = [(n, start + dt.timedelta(seconds=n), "") for n in range(3)]
    assert [len(chunk) for chunk in indexer.chunks(rows)] == [1, 2]


def order_records(record: Build, **changes: Any) -> list[AuditRecord]:
    """A proposal by Ada and its confirmation by Bob, as ca-signer writes them."""
    values: dict[str, Any] = {
        "proposer": "ada",
        "confirmer": "bob",
        "id": ORDER,
        "month": "2019-01",
    }
    values |= changes
    done: dict[str, Any] = {"phase": "outcome", "outcome": "success", "target": {}}
    now = SystemClock().now() - values.get("ago", dt.timedelta())

    def actor(name: str) -> Actor:
        return Actor(type="human", subject=f"certificate:issuing/CN={name}", rule=name)

    confirmation = {"id": values["id"], "month": values["month"], "records": EACH}
    return [
        record(
            9_001,
            action="operator.audit-purge-propose",
            correlation_id=ORDER,
            actor=actor(values["proposer"]),
            details={"month": "2019-01"},
            occurred_at=now,
            **done,
        ),
        record(
            9_002,
            action="operator.audit-purge-confirm",
            correlation_id="confirmation",
            actor=actor(values["confirmer"]),
            details=confirmation,
            occurred_at=now,
            **done,
        ),
    ]


ORDER = "0198c7a4-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"confirmer": "ada"}, "retention.dual"),
        ({"id": "another"}, "retention.dual"),
        ({"month": "2019-02"}, "retention.dual"),
        ({"ago": dt.timedelta(days=8)}, "retention.no_order"),
    ],
)
async def test_a_purge_needs_two_operators_of_the_last_week(
    old: AuditWorld, record: Build, changes: dict[str, Any], code: str
) -> None:
    async with old.service(), old.publisher() as publisher:
        await publisher.send(*order_records(record, **changes))
        await old.wait("select count(*) from record where action like 'operator.audit-purge%'", 2)
        with pytest.raises(Conflict) as caught:
            await ordered(old)
        assert caught.value.code == code
    assert await old.value("select count(*) from purge") == 0


async def sealed(world: AuditWorld) -> None:
    """Wait until a checkpoint covers every record that orders a purge."""
    last = "(select max(log_index) from record where action like 'operator.audit-purge%')"
    await world.wait(f"select count(*) > 0 from checkpoint where size > {last}", True)


async def ordered(world: AuditWorld) -> None:
    await retention_commands.purge(
        world.settings(), month=JANUARY, file=None, without_archive=True, order=ORDER
    )


async def test_what_two_operators_ordered_is_purged_and_names_both(
    old: AuditWorld, record: Build
) -> None:
    async with old.service(), old.publisher() as publisher:
        with pytest.raises(Conflict, match="on record"):
            await ordered(old)
        await publisher.send(*order_records(record))
        await old.wait("select count(*) from record where action like 'operator.audit-purge%'", 2)
        await sealed(old)
        await ordered(old)
        await old.wait("select count(*) from record where action = 'audit.purge'", 1)
        (row,) = await found(old, action="audit.purge", full=True)
    details = row["record"]["details"]
    assert details["proposed_by"] == "certificate:issuing/CN=ada"
    assert details["confirmed_by"] == "certificate:issuing/CN=bob"


async def test_a_record_that_was_changed_in_the_database_orders_nothing(
    old: AuditWorld, record: Build
) -> None:
    """Bob confirmed another month; the database says it was this one."""
    async with old.service(), old.publisher() as publisher:
        await publisher.send(*order_records(record, month="2019-02"))
        await old.wait("select count(*) from record where action like 'operator.audit-purge%'", 2)
        await sealed(old)
        connection: Any = await old.superuser()
        try:
            table = await connection.fetchval(
                "select tableoid::regclass::text from record "
                "where action = 'operator.audit-purge-confirm'"
            )
            await connection.execute(f"alter table {table} disable trigger all")
            packed = await connection.fetchval(
                "select packed_leaf from record where action = 'operator.audit-purge-confirm'"
            )
            changed = pack(unpack(packed).replace('"2019-02"', '"2019-01"'))
            assert changed != packed
            await connection.execute(
                "update record set packed_leaf = $1 where action = 'operator.audit-purge-confirm'",
                changed,
            )
        finally:
            await connection.close()
        with pytest.raises(AuditChainBroken):
            await ordered(old)
    assert await old.value("select count(*) from purge") == 0


async def test_an_empty_file_is_no_archive(old: AuditWorld, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    async with old.service():
        with pytest.raises(MalformedRequest, match="not an archive"):
            await retention_commands.restore(old.settings(), empty)


@pytest.mark.parametrize("number", [-1, 1 << 63, 1 << 80])
def test_a_number_that_no_log_reaches_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="before"):
        AuditSearch(before=number)
    with pytest.raises(ValueError, match="after"):
        AuditTail(after=number)
    with pytest.raises(ValueError, match="index"):
        AuditProve(index=number)


@pytest.mark.parametrize("month", ["0000-01", "1999-12", "9999-12", "2019-13", "2019-1"])
def test_a_month_that_no_log_has_is_none(month: str) -> None:
    with pytest.raises(ValueError, match="month"):
        PurgeProposal(month=month)


async def test_operators_propose_and_confirm_over_the_bus(
    platform: Platform, old: AuditWorld, record: Build, tmp_path: Path
) -> None:
    policy = policy_with_operators(tmp_path)
    async with (
        signer_stack(platform, tmp_path, policy_file=policy) as signer,
        answering(old, signer.operations.audit_listener.run) as asked,
    ):
        keeper, auditor = await operator(signer, "CN=keeper"), await operator(signer, "CN=auditor")

        async def give(who: TestOperator, verb: str, **arguments: Any) -> CommandAnswered:
            command = who.command(verb, arguments, service="audit")
            answer: CommandAnswered = await asked(who.sign(command), verb)
            return answer

        answer = await give(keeper, "audit-purge-propose", month="2019-01")
        assert answer.result is not None
        assert (answer.result["month"], answer.result["records"]) == ("2019-01", EACH)
        assert answer.result["id"] == answer.command_id
        early = await give(keeper, "audit-purge-propose", month="2026-11")
        assert early.code == "retention.too_young"
        refused = await give(auditor, "audit-purge-propose", month="2019-01")
        assert refused.code == "command.role"
        # Its record is in the ledger, and not in the log yet: there is no writer here.
        late = await give(
            keeper, "audit-purge-confirm", id=answer.command_id, month="2019-01", records=EACH
        )
        assert late.code == "retention.no_order"
