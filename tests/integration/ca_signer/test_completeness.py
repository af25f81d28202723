"""A ledger older than the bus is noticed before anything is signed with it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_signer.metrics import FALSE_EVENTS
from ca_signer.recovery.ledger_check import ISSUED, EventRef, StaleLedgerCheck, read_event_ref
from estcore import ids
from estcore.errors import BusUnavailable, InvariantBroken, LedgerUnavailable
from estcore.messages import topics
from estcore.messages.envelope import encode_mapping
from estcore.messages.joined import split
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.stored_messages import stored_from
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


def check(signer: SignerStack) -> StaleLedgerCheck:
    return StaleLedgerCheck(signer.bus, signer.database, signer.decision_context.issuers)


async def announce(signer: SignerStack, name: str, kind: str = "issued", **more: Any) -> None:
    """Say on the bus that something happened, as a process with ca-signer's rights can."""
    topic = topics.certificate_topic(kind, "test", "foreign")
    await signer.bus.publish_confirmed([Outgoing(topic, encode_mapping({"id": name, **more}))])


async def lose(signer: SignerStack, platform: Platform, name: str) -> UUID:
    """Issue a certificate, and make the ledger one from before; returns the issuance id."""
    answer = await signer.ask(signer.message(make_csr(name)[1]))
    assert answer.outcome == "issued"
    subject = f"CN={name}"
    async with asyncio.timeout(10):
        while not await signer.value(
            "select true from certificate join issuance using (issuance_id) where subject = $1",
            subject,
        ):
            await asyncio.sleep(0.05)
    lost = await signer.value("select issuance_id from issuance where subject = $1", subject)
    connection = await platform.postgres.superuser()
    try:
        await connection.execute("set search_path to ca_signer")
        for table in ("enrollment", "fingerprint", "issuance"):
            await connection.execute(f"delete from {table} where issuance_id = $1", lost)
    finally:
        await connection.close()
    return UUID(str(lost))


@pytest.mark.logs_errors("ledger is older than the bus, run ca-signer reconcile")
async def test_a_ledger_is_complete_until_the_bus_knows_more(
    signer: SignerStack, platform: Platform
) -> None:
    boss = await operator(signer, "CN=boss")
    for n in range(3):
        answer = await signer.ask(signer.message(make_csr(f"dev-{n}")[1]))
        assert answer.outcome == "issued"
    sql = "select certificate_sha256 from issuance where subject = 'CN=dev-2'"
    revoke = {"fingerprint": (await signer.value(sql)).hex(), "reason": "superseded"}
    await boss.give(signer, "certificate-revoke", revoke)
    await signer.operations.outbox.flush()
    compared = check(signer)
    forgotten = await compared.missing()
    own = await signer.rows("select issuance_id from issuance where subject <> 'CN=dev-held'")
    assert not {row["issuance_id"] for row in own} & set(forgotten)
    if not forgotten:  # another test of this module may have published false events on the same bus
        assert compared.complete
        await compared.require()

    # What the ledger lacks stops signing, and a signer that runs.
    running = check(signer)
    before = await running.missing()
    lost = await lose(signer, platform, "dev-lost")
    assert set(await running.missing()) - set(before) == {lost}
    assert not running.complete
    with pytest.raises(LedgerUnavailable) as refused:
        await check(signer).require()
    assert refused.value.code == "ledger.stale"
    with pytest.raises(InvariantBroken):
        async with asyncio.timeout(20):
            await running.watch(asyncio.Event())
    # At the start it waits, audits that, and ends only when it is stopped.
    stop = asyncio.Event()
    holding = asyncio.ensure_future(check(signer).hold(signer.publisher, stop))
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
    before = set(await check(signer).missing())
    await announce(signer, f"revoked-{known}-7", "revoked")
    assert set(await check(signer).missing()) - before == {known}


@pytest.mark.logs_errors("event of a certificate that is none of ours")
async def test_an_invented_event_stops_nothing_and_is_reported_once(signer: SignerStack) -> None:
    """By ca-signer's own key: no certificate, one of a different issuer, one of a wrong serial."""
    await signer.ask(signer.message(make_csr("dev-genuine")[1]))
    await signer.cycle.flush_unpublished()
    stored, _ = await stored_from(signer.bus, topics.PKI_EVENTS, ISSUED, 1)
    genuine = json.loads(split(stored[-1].payload)[-1])
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-genuine")])
    now = dt.datetime.now(dt.UTC)
    foreign = (
        x509.CertificateBuilder(name, name, key.public_key(), int(genuine["serial"], 16))
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    running = check(signer)
    before = set(await running.missing())
    reported = FALSE_EVENTS._value.get()
    for changes in (
        {},
        {"certificate": b64encode(foreign).decode()},
        {"serial": f"{1:036x}"},
        {"issuer_id": "unknown"},
    ):
        event = {"only": "an id"} if not changes else genuine | changes
        await announce(signer, ids.uuid7(), **{k: v for k, v in event.items() if k != "id"})
    for _ in range(3):
        assert set(await running.missing()) == before
    assert FALSE_EVENTS._value.get() - reported == 3  # the last is for a different process


@pytest.mark.logs_errors("bus permission violation")
async def test_a_revocation_that_ca_signer_did_not_publish_does_not_count(
    signer: SignerStack, platform: Platform
) -> None:
    await signer.ask(signer.message(make_csr("dev-upstream")[1]))
    known = await signer.value("select issuance_id from issuance where subject = 'CN=dev-upstream'")
    before = set(await check(signer).missing())
    upstream = await Bus.connect(platform.bus("ca-signer-upstream"), "ca-signer-upstream", "u-0")
    try:
        topic = topics.certificate_topic("revoked", "test", "foreign")
        event = Outgoing(topic, encode_mapping({"id": f"revoked-{known}-9"}))
        with pytest.raises(BusUnavailable):
            await upstream.publish_confirmed([event])
    finally:
        await upstream.close()
    assert set(await check(signer).missing()) == before


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"id":5}', b'{"id":"revoked-x-1"}', b"[1]"])
async def test_what_is_no_event_of_ours_is_passed_over(payload: bytes) -> None:
    assert read_event_ref(payload) is None


async def test_an_event_names_the_issuance_and_its_change() -> None:
    name = UUID(ids.uuid7())
    assert read_event_ref(b'{"id":"%s"}' % str(name).encode()) == EventRef(name, 0)
    assert read_event_ref(b'{"id":"revoked-%s-12"}' % str(name).encode()) == EventRef(name, 12)
