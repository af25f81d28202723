"""A ledger older than the bus is noticed before anything is signed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from ca_signer.recovery.ledger_check import EventRef, StaleLedgerCheck, read_event_ref
from estcore import ids
from estcore.errors import InvariantBroken, LedgerUnavailable
from estcore.messages import topics
from estcore.messages.envelope import encode_mapping
from estcore.runtime.bus import Outgoing
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("complete")
    async with signer_stack(platform, folder, policy_file=policy_with_operators(folder)) as stack:
        yield stack


async def announce(signer: SignerStack, name: str, kind: str = "issued") -> None:
    """Say on the bus that something happened, as a signer with a newer ledger did."""
    topic = topics.certificate_topic(kind, "test", "foreign")
    await signer.bus.publish_confirmed([Outgoing(topic, encode_mapping({"id": name}))])


@pytest.mark.logs_errors("ledger is older than the bus, run ca-signer reconcile")
async def test_a_ledger_is_complete_until_the_bus_knows_more(signer: SignerStack) -> None:
    boss = await operator(signer, "CN=boss")
    for n in range(3):
        answer = await signer.ask(signer.message(make_csr(f"dev-{n}")[1]))
        assert answer.outcome == "issued"
    sql = "select certificate_sha256 from issuance where subject = 'CN=dev-2'"
    revoke = {"fingerprint": (await signer.value(sql)).hex(), "reason": "superseded"}
    await boss.give(signer, "certificate-revoke", revoke)
    await signer.operations.outbox.flush()
    compared = StaleLedgerCheck(signer.bus, signer.database)
    forgotten = await compared.missing()
    own = await signer.rows("select issuance_id from issuance where subject <> 'CN=dev-held'")
    assert not {row["issuance_id"] for row in own} & set(forgotten)
    if not forgotten:  # another test of this module may have published false events on the same bus
        assert compared.complete
        await compared.require()

    # What the ledger lacks stops signing, and a signer that runs.
    running = StaleLedgerCheck(signer.bus, signer.database)
    before = await running.missing()
    lost = ids.uuid7()
    await announce(signer, lost)
    assert set(await running.missing()) - set(before) == {UUID(lost)}
    assert not running.complete
    with pytest.raises(LedgerUnavailable) as refused:
        await StaleLedgerCheck(signer.bus, signer.database).require()
    assert refused.value.code == "ledger.stale"
    with pytest.raises(InvariantBroken):
        async with asyncio.timeout(20):
            await running.watch(asyncio.Event())
    # At the start it waits, audits that, and ends only when it is stopped.
    stop = asyncio.Event()
    holding = asyncio.ensure_future(
        StaleLedgerCheck(signer.bus, signer.database).hold(signer.publisher, stop)
    )
    async with asyncio.timeout(10):
        while not (records := await signer.audited("signing.refused")):
            await asyncio.sleep(0.1)
    assert records[0].outcome == "failure"
    assert records[0].details is not None
    assert records[0].details["reason"] == "ledger.stale"
    assert not holding.done()
    stop.set()
    assert await holding is False


async def test_a_forgotten_revocation_counts_as_well(signer: SignerStack) -> None:
    await signer.ask(signer.message(make_csr("dev-held")[1]))
    known = await signer.value("select issuance_id from issuance where subject = 'CN=dev-held'")
    before = set(await StaleLedgerCheck(signer.bus, signer.database).missing())
    await announce(signer, f"revoked-{known}-7", "revoked")
    assert set(await StaleLedgerCheck(signer.bus, signer.database).missing()) - before == {known}


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"id":5}', b'{"id":"revoked-x-1"}', b"[1]"])
async def test_what_is_no_event_of_ours_is_passed_over(payload: bytes) -> None:
    assert read_event_ref(payload) is None


async def test_an_event_names_the_issuance_and_its_change() -> None:
    name = UUID(ids.uuid7())
    assert read_event_ref(b'{"id":"%s"}' % str(name).encode()) == EventRef(name, 0)
    assert read_event_ref(b'{"id":"revoked-%s-12"}' % str(name).encode()) == EventRef(name, 12)
