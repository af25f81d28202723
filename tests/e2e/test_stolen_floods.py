"""What stolen credentials of a service reach beside streams: core topics and the database."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest

from estcore import ids
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.signatures import HEADER
from estcore.messages.state import TrustFetched
from estsuite_testing.e2e_stack import Stack
from estsuite_testing.thief import enrolled, thief

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


async def test_a_front_end_that_floods_its_core_topics_stops_no_enrollment(stack: Stack) -> None:
    """No stream bounds them: what ca-signer and renewal receive they drop or refuse in time."""
    fetched = encode(TrustFetched(rollover=UUID(ids.uuid7()), fingerprints=("00" * 32,)))
    floods = (
        (topics.FETCHED_TOPIC, fetched),
        ("pki.ack.default", b"{}"),
        ("pki.ocsp.issuing", b"0"),
    )
    async with thief(stack, "est-frontend") as found:
        signed = [(topic, payload, found.key.sign(topic, payload)) for topic, payload in floods]
        for number in range(4):
            for _ in range(5000):
                for topic, payload, signature in signed:
                    await found.client.publish(topic, payload, "x", {HEADER: signature})
            assert await enrolled(stack, f"dev-beside-{number}") == 200
        assert not [v for v in found.violations if "no responders" not in v.lower()]


@pytest.mark.parametrize("role", ["ca_signer", "renewal", "audit"])
async def test_a_database_role_reaches_its_own_schema_only(stack: Stack, role: str) -> None:
    password = (stack.layout.secrets / f"{role}.password").read_text().strip()
    connection = await asyncpg.connect(stack.layout.postgres.url(role), password=password)
    try:
        for schema, table in (
            ("ca_signer", "issuance"),
            ("renewal", "certificate"),
            ("audit", "record"),
        ):
            question = f"select count(*) from {schema}.{table}"
            if schema == role:
                await connection.fetchval(question)
            else:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetchval(question)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"create table {role}.x (y int)")
    finally:
        await connection.close()
