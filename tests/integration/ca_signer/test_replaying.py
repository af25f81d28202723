"""The rollovers in the audit log are those that the ledger's state machine made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ca_signer.issuers import rollover
from ca_signer.recovery.audit_log import read_records
from ca_signer.recovery.restore import Restorer
from ca_signer.recovery.rollover_history import Move, replay
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import Conflict, MalformedRequest
from estsuite_testing.operators import policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
NOW = SystemClock().now
STEPS = ("begin a", "begin b", "begin own", "publish", "sign", "retire", "back")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("replay")
    policy = policy_with_operators(folder)
    async with signer_stack(platform, folder, running=False, policy_file=policy) as stack:
        yield stack


async def carry_out(connection: Any, family: str, step: str) -> Any:
    """One command; returns the rollover's row where it changed something."""
    match step.split():
        case ["begin", which]:
            to = family if which == "own" else f"{family}-{which}"
            row, changed = await rollover.begin(connection, family, to, "boss")
        case ["publish"]:
            row, changed = await rollover.publish(connection, family, "boss")
        case ["sign"]:
            row, changed = await rollover.sign(connection, family, "boss", least_percent=0)
        case ["retire"]:
            row, changed = await rollover.retire(connection, family, "boss", left_behind=0)
        case _:
            row, changed = await rollover.roll_back(connection, family, "boss")
    return row if changed else None


def moved(row: Any) -> Move:
    return Move(
        str(row["rollover_id"]), row["family"], row["from_issuer"], row["to_issuer"],
        row["state"], NOW(), "boss",
    )  # fmt: skip


async def tables(signer: SignerStack, family: str) -> tuple[dict[str, str], dict[str, str]]:
    async with signer.database.connection() as connection:
        rows = await connection.fetch("select * from rollover where family = $1", family)
        found = await connection.fetch("select * from generation where family = $1", family)
    return (
        {str(r["rollover_id"]): r["state"] for r in rows},
        {g["issuer_id"]: g["state"] for g in found},
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_any_order_of_commands_played_again_gives_the_same_tables(
    signer: SignerStack, data: st.DataObject
) -> None:
    family = ids.uuid7()[-12:]
    moves = []
    for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=14)):
        async with signer.database.connection() as connection:
            with suppress(Conflict):
                async with connection.transaction():
                    row = await carry_out(connection, family, step)
                    if row is not None:
                        moves.append(moved(row))
    played = replay(moves)
    rollovers, generations = await tables(signer, family)
    assert {name: one.state for name, one in played.rollovers.items()} == rollovers
    said = {name: state for name, (_, state) in played.generations.items()}
    assert said.items() <= generations.items()
    signing = [name for name, state in generations.items() if state == "signing"]
    assert len(signing) <= 1
    for one in played.rollovers.values():
        assert (one.ended_at is None) == (one.state in {"planned", "published", "signing"})


async def test_rollovers_come_back_into_a_ledger_that_has_forgotten_them(
    signer: SignerStack, platform: Platform
) -> None:
    family = ids.uuid7()[-12:]
    records = []
    for step in ("begin a", "publish", "sign", "begin own", "publish", "back"):
        async with signer.database.connection() as connection, connection.transaction():
            row = await carry_out(connection, family, step)
        records.append(record(row))
    before = await tables(signer, family)
    found = read_records(records, signer.decision_context.profiles)
    restorer = Restorer(signer.bus, signer.database)
    assert (await restorer.restore(found)).rollovers == 0

    superuser = await platform.postgres.superuser()
    try:
        await superuser.execute("truncate ca_signer.rollover, ca_signer.generation")
    finally:
        await superuser.close()
    done = await restorer.restore(found)
    assert (done.rollovers, done.unrecoverable_commands) == (2, [])
    assert await tables(signer, family) == before
    assert (await restorer.restore(found)).rollovers == 0


def record(row: Any) -> dict[str, Any]:
    return {
        "record_id": ids.uuid7(),
        "producer": {"service": "ca-signer", "instance": "x", "boot_id": "b"},
        "occurred_at": NOW().isoformat(),
        "correlation_id": ids.uuid7(),
        "action": f"operator.rollover-{row['state'].replace('_', '')}",
        "phase": "outcome",
        "outcome": "success",
        "actor": {"type": "human", "rule": "boss"},
        "target": {"issuer_id": row["family"]},
        "details": {
            "rollover_id": str(row["rollover_id"]),
            "from": row["from_issuer"],
            "to": row["to_issuer"],
            "state": row["state"],
            "changed": True,
        },
    }


@pytest.mark.parametrize("gone", ["rollover_id", "from", "state"])
async def test_a_rollover_that_is_half_on_record_stops_everything(
    signer: SignerStack, gone: str
) -> None:
    async with signer.database.connection() as connection, connection.transaction():
        row = await carry_out(connection, ids.uuid7()[-12:], "begin a")
    half = record(row)
    del half["details"][gone]
    with pytest.raises(MalformedRequest) as refused:
        read_records([half], signer.decision_context.profiles)
    assert refused.value.code == "reconcile.record"
