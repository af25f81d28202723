"""What stolen credentials of a service reach beside streams: core topics and the database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from estcore import ids
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.signatures import HEADER
from estcore.messages.state import TrustFetched
from estcore.runtime.nats_client import Client, nats
from estdev.local import admin_get
from estsuite_testing.e2e_stack import Stack, start_stack, stop_stack
from estsuite_testing.thief import enrolled, thief

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite that answers OCSP."""
    folder = tmp_path_factory.mktemp("floods")
    started = await start_stack(folder, overrides={"ca-signer": {"ocsp": {}}})
    try:
        yield started
    finally:
        await stop_stack(started)


FLOODED = {"ca-signer": "ca_signer_ocsp_total", "renewal": "est_renewal_proofs_total"}
"""Who counts what arrived."""


async def counted(stack: Stack, service: str, metric: str) -> float:
    """Return the sum of a counter over its labels."""
    text = await admin_get(stack.suite.services[service].admin_port, "/metrics")
    return sum(float(n) for n in re.findall(rf"^{metric}{{.*}} (\S+)$", text, re.MULTILINE))


async def answers(client: Client, topic: str) -> bool:
    try:
        return bool((await client.request(topic, b"0", timeout=1)).data)
    except nats.errors.Error:
        return False


async def test_a_front_end_that_floods_its_core_topics_stops_no_enrollment(stack: Stack) -> None:
    """No stream bounds them: what ca-signer and renewal receive they drop or refuse in time."""
    fetched = encode(TrustFetched(rollover=UUID(ids.uuid7()), fingerprints=("00" * 32,)))
    floods = (
        (topics.FETCHED_TOPIC, fetched),
        ("pki.ack.default", b"{}"),
        ("pki.renewed.default", b"{}"),
        ("pki.ocsp.issuing", b"0"),
    )
    async with thief(stack, "est-frontend") as found:
        async with asyncio.timeout(20):
            while not await answers(found.client, "pki.ocsp.issuing"):
                await asyncio.sleep(0.2)  # the responder gets its certificate first
        signed = [(topic, payload, found.key.sign(topic, payload)) for topic, payload in floods]
        for number in range(4):
            for _ in range(5000):
                for topic, payload, signature in signed:
                    await found.client.publish(topic, payload, "x", {HEADER: signature})
            assert await enrolled(stack, f"dev-beside-{number}") == 200
        assert not [v for v in found.violations if "no responders" not in v.lower()]
    for service, metric in FLOODED.items():
        async with asyncio.timeout(30):
            while await counted(stack, service, metric) <= 1000:  # on a busy machine, in a while
                await asyncio.sleep(0.2)


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
