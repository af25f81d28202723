"""Records that PostgreSQL refuses are put aside; a PostgreSQL that refuses all is waited for."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from nats.js.errors import APIError

from estcore.clock import SystemClock
from estcore.messages.audit import AuditRecord
from estsuite_testing.audit_stack import AuditWorld

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
FOREIGN = "select count(*) from record where service <> 'audit'"
DEAD = "select count(*) from record where action = 'audit.dead_letter'"
_REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin
    if {condition} then raise exception 'refused by a test'; end if;
    return new;
end $$;
create trigger refuse before insert on record for each row execute function refuse();
"""
_ACCEPT = "drop trigger refuse on record; drop function refuse()"
_LONG = "x" * 12_000


def _texts(record: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            found += _texts(value, (*path, name))
        elif isinstance(value, str):
            found.append((*path, name))
    return found


@pytest.mark.logs_errors("audit message unreadable")
async def test_no_long_text_in_any_field_stops_the_log(world: AuditWorld, record: Build) -> None:
    """Every text of a record in turn, and every id of its target, of 12,000 characters."""
    ids = ("issuance_id", "request_id", "rotation_id", "slot_id", "serial", "certificate_sha256")
    good = record(0, causation_id="c", trace_id="t", reason="r", reason_code="a.b").model_dump(
        mode="json", exclude_none=True
    )
    good["target"] |= dict.fromkeys(ids, "i") | {"issued_at": "2026-01-02T12:00:00Z"}
    good |= {"action": "certificate.issue", "phase": "outcome", "outcome": "success"}
    fields = _texts(good)
    assert ("target", "issuance_id") in fields
    async with world.service() as _, world.publisher() as publisher:
        for number, path in enumerate(fields, 1):
            copy = json.loads(json.dumps(good)) | {"record_id": record(number).record_id}
            place = copy
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = _LONG
            await publisher.raw(json.dumps({"records": [copy]}).encode())
        await publisher.send(record(1000))
        count = f"select ({FOREIGN}) + ({DEAD})"
        await world.wait(count, len(fields) + 1)
        assert await world.value(f"{FOREIGN} and record_id = $1", record(1000).record_id) == 1


@pytest.mark.logs_errors("audit message unreadable")
async def test_a_record_that_postgres_refuses_holds_up_no_other(
    world: AuditWorld, record: Build
) -> None:
    connection = await world.superuser()
    await connection.execute(_REFUSE.format(condition="new.correlation_id = 'refused'"))
    await connection.close()
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(record(1))
        await publisher.send(record(2, correlation_id="refused"))
        await publisher.send(record(3))
        await world.wait(FOREIGN, 2)
        await world.wait(DEAD, 1)


async def test_while_postgres_refuses_every_record_none_is_put_aside(
    world: AuditWorld, record: Build
) -> None:
    async with world.service() as port, world.publisher() as publisher:
        await publisher.send(record(1))
        await world.wait(FOREIGN, 1)
        connection = await world.superuser()
        await connection.execute(_REFUSE.format(condition="true"))
        for number in range(2, 12):
            await publisher.send(record(number))
        await world.until_not_ready(port)
        await connection.execute(_ACCEPT)
        await connection.close()
        await world.wait(FOREIGN, 11)
        assert await world.value(DEAD) == 0


async def test_a_record_of_the_future_is_kept_and_noted(world: AuditWorld, record: Build) -> None:
    """Its producer's clock is wrong; the log verifies, and says whose record it was."""
    ahead = SystemClock().now() + dt.timedelta(minutes=20)
    async with world.service() as _, world.publisher() as publisher:
        await publisher.send(record(1, occurred_at=ahead))
        await publisher.send(record(1, occurred_at=ahead), record(2))
        await world.wait(FOREIGN, 2)
        noted = "select count(*) from record where action = 'audit.record_ahead'"
        await world.wait(noted, 1)
        (ahead_of_time,) = await world.leaves("action = 'audit.record_ahead'")
    details = ahead_of_time["record"]["details"]
    assert (details["id"], details["service"], details["instance"]) == (
        record(1).record_id,
        "ca-signer",
        "s-0",
    )
    assert 1100 < details["ahead_s"] <= 1200


@pytest.mark.logs_errors("audit message unreadable")
async def test_the_largest_message_that_the_stream_takes_is_put_aside(
    world: AuditWorld, record: Build
) -> None:
    """A dead letter has headers of its own; it must fit where the message did."""
    taken = 0
    async with world.service() as _, world.publisher() as publisher:
        stream = publisher.bus.client.jetstream()
        for octets in (1 << 20, (1 << 20) - 300, (1 << 20) - 4096, (1 << 20) - 4500):
            # Without headers there is room for more than a service itself can send.
            with contextlib.suppress(APIError):
                await stream.publish("audit.issue.ca-signer", b"{" * octets)
                taken += 1
        await publisher.send(record(1))
        assert taken
        await world.wait(DEAD, taken)
        await world.wait(FOREIGN, 1)
