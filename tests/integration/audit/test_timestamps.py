"""Checkpoints are stamped by ``openssl ts``: verified offline and by openssl, outages survived."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from audit import commands, retention
from audit.settings import Settings, TimestampSettings
from audit.timestamps import authority_of
from estcore.errors import ConfigurationError
from estcore.messages.audit import AuditRecord
from estcore.runtime.database import Database
from estcore.runtime.log_verification import Choices, render, verify_log
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.timestamp import Authority
from estcore.tlog.verify import Options, verify
from estsuite_testing.audit_stack import ORIGIN, START, AuditWorld
from estsuite_testing.timestamp_authority import NAME, TimestampAuthority, openssl

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
FAULTS = ["busy", "garbage", "huge", "moved", "slow"]


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[tuple[TimestampAuthority, str]]:
    server = TimestampAuthority(tmp_path / "tsa")
    yield server, await server.start()
    await server.stop()


async def exported(world: AuditWorld, settings: Settings, out: Path) -> list[bytes]:
    await commands.export_log(settings, out, None, sealed=False)
    return out.read_bytes().splitlines()


async def archived(world: AuditWorld) -> list[bytes]:
    """The archive of the month."""
    database = await Database.connect(world.settings().database, "audit", "audit")
    try:
        async with database.connection() as connection:
            moment = await world.value("select max(recorded_at) from record")
            month = retention.Month.parse(f"{moment:%Y-%m}")
            return [line async for line in retention.archive(connection, month, ORIGIN, world.vkey)]
    finally:
        await database.close()


def choices(world: AuditWorld, anchors: Path, name: str = NAME) -> Choices:
    return Choices(vkey=str(world.vkey), tsa=(f"{name}={anchors}",))


async def test_checkpoints_are_stamped_and_openssl_verifies_them(
    world: AuditWorld,
    record: Build,
    authority: tuple[TimestampAuthority, str],
    tmp_path: Path,
) -> None:
    server, url = authority
    stamps = (server.settings(url),)
    async with world.service(timestamps=stamps), world.publisher() as publisher:
        for start in (0, 20):
            await publisher.send(*(record(start + n) for n in range(20)))
            await world.wait(f"select max(size) >= {start + 20} from cosignature", True)
        # Nothing more is recorded: the newest checkpoint becomes one of all records, with a stamp.
        await world.wait(
            "select (select max(size) from cosignature) = (select count(*) from record)", True
        )
        archive = await archived(world)
        lines = await exported(world, world.settings(timestamps=stamps), tmp_path / "log.jsonl")
    report = verify_log(lines, choices(world, server.anchors))
    assert report.ok, report.findings
    (stamped,) = report.timestamps
    assert stamped.authority == NAME
    assert stamped.size >= 40
    assert any(line.startswith("time stamp") for line in render(report))

    notes = [json.loads(line)["note"] for line in lines if b'"type":"checkpoint"' in line]
    signed = [parse_signed(note) for note in notes]
    stamped_notes = [one for one in signed if len(one.signatures) > 1]
    assert len(stamped_notes) > 1
    for one in stamped_notes:
        (answer,) = [octets for name, _, octets in one.signatures if name == NAME]
        (tmp_path / "text").write_text(one.checkpoint.text(), encoding="utf-8")
        (tmp_path / "answer").write_bytes(answer)
        verified = openssl(
            *("ts", "-verify", "-data", tmp_path / "text", "-in", tmp_path / "answer"),
            *("-CAfile", server.anchors),
        )
        assert b"OK" in verified

    report = verify_log(archive, choices(world, server.anchors))
    assert report.ok, report.findings
    assert report.archive
    assert [one.authority for one in report.timestamps] == [NAME]

    # A time stamp that is a day older than a record under it: here by a clock that is a day ahead.
    trusted = Authority.parse(NAME, server.anchors.read_bytes())
    options = Options(
        now=START, key=world.vkey, authorities=(trusted,), clock_skew=dt.timedelta(days=-1)
    )
    findings = verify(lines, options).report.findings
    late = [one for one in findings if one.code == "timestamp.time"]
    assert len(late) == len(stamped_notes)
    assert "before its last record" in late[0].sentence

    # What does not hold is one finding, with its place.
    stranger = TimestampAuthority(tmp_path / "stranger")
    findings = verify_log(lines, choices(world, stranger.anchors)).findings
    assert {one.code for one in findings} == {"timestamp.wrong", "timestamp.missing"}
    unknown = verify_log(lines, choices(world, server.anchors, "other.test")).findings
    assert [one.code for one in unknown] == ["timestamp.missing"]
    moved = [_with_stamp_of(line, stamped_notes[0].note) for line in lines]
    codes = {one.code for one in verify_log(moved, choices(world, server.anchors)).findings}
    assert "timestamp.wrong" in codes


def _with_stamp_of(line: bytes, note: str) -> bytes:
    """A checkpoint's line with the time stamp of a different checkpoint."""
    value = json.loads(line)
    if value["type"] != "checkpoint" or value["note"] == note:
        return line
    head, _, tail = value["note"].partition("\n\n")
    stamp = next(one for one in note.splitlines() if one.startswith(f"— {NAME} "))
    value["note"] = f"{head}\n\n{tail.splitlines()[0]}\n{stamp}\n"
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


async def test_faults_of_an_authority_neither_stop_nor_delay_sealing(
    world: AuditWorld,
    record: Build,
    authority: tuple[TimestampAuthority, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, url = authority
    server.faults = ["busy", "busy", "garbage", "garbage", "huge", "moved", "slow"]
    async with (
        world.service(timestamps=(server.settings(url),)),
        world.publisher() as publisher,
    ):
        for n in range(12):
            await publisher.send(record(n))
            await world.wait(f"select max(size) >= {n + 1} from checkpoint", True)
        await world.wait("select count(*) > 0 from cosignature", True)
        await world.wait(
            "select count(*) from record where action = 'audit.timestamp_recovered'", 1
        )
    said = [one for one in caplog.records if one.message == "checkpoint is not stamped"]
    # A fault that lasts is one line: busy twice, garbage twice, then others until it recovers.
    codes = [one.__dict__["fields"]["code"] for one in said]
    assert codes == ["timestamp.unavailable", "timestamp.wrong", "timestamp.unavailable"]


async def test_an_answer_to_a_different_request_is_not_stored(
    world: AuditWorld, record: Build, authority: tuple[TimestampAuthority, str]
) -> None:
    server, url = authority
    async with (
        world.service(timestamps=(server.settings(url),)),
        world.publisher() as publisher,
    ):
        await publisher.send(record(1))
        await world.wait("select count(*) > 0 from cosignature", True)
        server.faults = ["old"] * 1000
        await publisher.send(record(2))
        await world.wait("select count(*) from record where action = 'audit.timestamp_fault'", 1)
        stamped = await world.value("select max(size) from cosignature")
        assert stamped < await world.value("select max(size) from checkpoint")
        (fault,) = await world.leaves("action = 'audit.timestamp_fault'")
        assert fault["record"]["reason_code"] == "timestamp.wrong"


async def test_an_authority_that_does_not_chain_to_the_anchors_stamps_nothing(
    world: AuditWorld, record: Build, tmp_path: Path
) -> None:
    server = TimestampAuthority(tmp_path / "tsa")
    url = await server.start()
    stranger = TimestampAuthority(tmp_path / "stranger")
    stamps = (server.settings(url, anchors_file=stranger.anchors),)
    async with world.service(timestamps=stamps), world.publisher() as publisher:
        await publisher.send(record(1))
        await world.wait("select count(*) from record where action = 'audit.timestamp_fault'", 1)
        assert await world.value("select count(*) from cosignature") == 0
    await server.stop()


def test_options_and_settings_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "none.pem"
    bad.write_text("no certificate")
    for text in ("name", "=file", "name=", f"a b={bad}", f"n={bad}", "n=/absent"):
        with pytest.raises(ConfigurationError):
            verify_log([], Choices(tsa=(text,)))
    for anchors in (bad, tmp_path / "absent.pem"):
        settings = TimestampSettings(name="n", url="http://tsa.test/", anchors_file=anchors)
        with pytest.raises(ConfigurationError, match="n"):
            authority_of(settings)
    with pytest.raises(ValueError, match="pattern"):
        TimestampSettings(name="n", url="ftp://tsa.test/", anchors_file=bad)
