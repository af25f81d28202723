"""A stand-in for ca-signer that publishes what the real one would, and est-renewal in process."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws
from joserfc.jwk import ECKey
from nats.aio.msg import Msg

from estcore.clock import SystemClock
from estcore.ids import new_serial_number, serial_hex, uuid7
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.envelope import decode, encode
from estcore.messages.events import CertificateIssued, CertificateRevoked, RotationEvent
from estcore.messages.state import RotationAck, RotationAckAnswered
from estcore.messages.topics import (
    AUDIT_CONSUMER,
    AUDIT_CONSUMERS,
    AUDIT_ISSUE,
    AUDIT_REFUSAL,
    certificate_topic,
    owned_by,
)
from estcore.pki.keys import spki_der
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.topology import declare
from estcore.tlog.items import expanded
from estsuite_testing.platform import Platform
from renewal.main import migrate, serve
from renewal.settings import RenewalSettings

T = TypeVar("T")
TENANT, SERVICE = "demo", "web"
_CA_KEY = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Issued:
    """A certificate as ca-signer announces it, with the key only its holder has."""

    event: CertificateIssued
    key: ec.EllipticCurvePrivateKey
    der: bytes

    def proof(self, rotation: str, *, key: Any = None, age_s: int = 0, **claims: Any) -> str:
        """Return the JWS an agent sends."""
        iat = int(SystemClock().now().timestamp()) - age_s
        body = {"rotation_id": rotation, "serial": self.event.serial, "iat": iat} | claims
        payload = json.dumps(body).encode()
        return jws.serialize_compact(
            {"alg": "ES256"}, payload, ECKey.import_key(key or self.key), algorithms=["ES256"]
        )


def issue(
    slot_id: str | None = None,
    *,
    after: Issued | None = None,
    age_s: float = 0,
    lifetime_s: float = 7200,
    overlap_s: int = 1,
    reaction_s: int = 60,
    **changes: Any,
) -> Issued:
    """Return a new certificate; ``after`` makes it a renewal of that one."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued_at = SystemClock().now() - dt.timedelta(seconds=age_s)
    start = issued_at.replace(microsecond=0)
    serial = new_serial_number()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web.demo")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(seconds=lifetime_s))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_CA_KEY.public_key()),
            critical=False,
        )
        .sign(_CA_KEY, hashes.SHA256())
    )
    der = certificate.public_bytes(Encoding.DER)
    values: dict[str, Any] = {
        "id": uuid7(),
        "source": "ca-signer/test",
        "time": issued_at,
        "correlation_id": str(uuid.uuid4()),
        "tenant": TENANT,
        "service": SERVICE,
        "slot_id": slot_id or (after.event.slot_id if after else str(uuid.uuid4())),
        "issuer_id": "clinic",
        "profile": "tls",
        "priority": "normal",
        "label": "web",
        "subject": "CN=web.demo",
        "serial": serial_hex(serial),
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
        "issued_at": issued_at,
        "spki_sha256": sha256(spki_der(key.public_key())).hexdigest(),
        "fingerprint_sha256": sha256(der).hexdigest(),
        "certificate": base64.b64encode(der),
        "reaction_time_s": reaction_s,
        "overlap_s": overlap_s,
        "spread": 0.0,
    }
    if after is not None:
        values["predecessor_serial"] = after.event.serial
        values["predecessor_fingerprint"] = after.event.fingerprint_sha256
    return Issued(CertificateIssued(**(values | changes)), key, der)


@dataclass
class Bench:
    """Everything a test needs around est-renewal."""

    settings: RenewalSettings
    database: asyncpg.Connection
    signer: Bus
    frontend: Bus
    events: list[RotationEvent] = field(default_factory=list)
    message_ids: list[str] = field(default_factory=list)
    records: list[AuditRecord] = field(default_factory=list)
    """One for each fact: the items of a record by themselves."""
    record_topics: set[tuple[str, str]] = field(default_factory=set)
    """Actions of records, and the topics that they came on."""

    def issue(self, slot_id: str | None = None, **changes: Any) -> Issued:
        """Return a new certificate; ``after`` makes it a renewal of that one."""
        return issue(slot_id, **changes)

    async def revoke(self, one: Issued, reason: str = "keyCompromise") -> None:
        """Publish as ca-signer that the certificate was revoked."""
        event = CertificateRevoked(
            id=str(uuid.uuid4()),
            source="ca-signer/test",
            time=SystemClock().now(),
            correlation_id="revoke",
            tenant=one.event.tenant,
            service=one.event.service,
            issuer_id=one.event.issuer_id,
            serial=one.event.serial,
            fingerprint_sha256=one.event.fingerprint_sha256,
            reason=reason,
            revoked_at=SystemClock().now(),
        )
        topic = certificate_topic("revoked", event.tenant, event.service)
        await self.signer.publish_confirmed([Outgoing(topic, encode(event), event.id)])

    async def announce(self, *issued: Issued, times: int = 1) -> None:
        """Publish issued events as ca-signer; repeated ones bypass JetStream's own dedup."""
        for number in range(times):
            await self.signer.publish_confirmed(
                [
                    Outgoing(
                        certificate_topic("issued", i.event.tenant, i.event.service),
                        encode(i.event),
                        f"{i.event.id}.{number}",
                    )
                    for i in issued
                ]
            )

    async def acknowledge(self, proof: str | None, peer: Issued) -> RotationAckAnswered:
        """Send a proof of use as est-frontend; without JWS the connection of ``peer`` is it."""
        ack = RotationAck(
            request_id=uuid7(),
            correlation_id="c-1",
            label="web",
            jws=proof,
            peer=base64.b64encode(peer.der),
        )
        answer = await self.frontend.request(
            "pki.ack.default", encode(ack), answered_by=("renewal",), timeout_s=10
        )
        return decode(RotationAckAnswered, answer)

    async def slot(self, issued: Issued) -> asyncpg.Record:
        """Return the slot's row, which exists."""
        row = await self.find_slot(issued)
        assert row is not None
        return row

    async def find_slot(self, issued: Issued) -> asyncpg.Record | None:
        """Return the slot's row; None where there is none yet."""
        return await self.database.fetchrow(
            "select * from renewal.renewal_slot where slot_id = $1", issued.event.slot_id
        )

    async def certificate(self, issued: Issued) -> asyncpg.Record:
        """Return the certificate's row, which exists."""
        row = await self.find_certificate(issued)
        assert row is not None
        return row

    async def find_certificate(self, issued: Issued) -> asyncpg.Record | None:
        """Return the certificate's row; None where there is none yet."""
        return await self.database.fetchrow(
            "select * from renewal.certificate where issuance_id = $1", issued.event.id
        )

    async def end_certificate(self, issued: Issued, left: dt.timedelta = dt.timedelta(0)) -> None:
        """Let a certificate have so much time left, and its slot be looked at now."""
        await self.database.execute(
            "update renewal.certificate set not_after = now() + $2::interval"
            " where issuance_id = $1",
            issued.event.id,
            left,
        )
        await self.database.execute("update renewal.renewal_slot set check_at = now()")

    async def expire_leases(self) -> None:
        """Let the time of every dispatched slot be over."""
        await self.database.execute("update renewal.renewal_slot set lease_until = now()")

    async def end_pauses(self) -> None:
        """Let every slot that is retried later be retried now."""
        await self.database.execute("update renewal.renewal_slot set next_attempt_at = now()")

    async def forget_dispatch_announcements(self) -> None:
        """Let a crash have come between a claim and its publishing, a minute ago."""
        await self.database.execute(
            "update renewal.renewal_slot set announced_fence = 0,"
            " dispatched_at = now() - interval '1 minute'"
        )

    async def forget_step_announcements(self) -> None:
        """Let a crash have come between the steps and their publishing, a minute ago."""
        await self.database.execute(
            "update renewal.certificate set announced = 0, changed_at = now() - interval '1 minute'"
        )

    async def announced(self, issued: Issued) -> asyncpg.Record:
        """Return the certificate's row when all its steps have been published."""

        async def there() -> asyncpg.Record | None:
            row = await self.find_certificate(issued)
            return row if row is not None and row["announced"] == row["reached"] else None

        return await self.until(there, "publishing of all steps")

    async def slot_is(self, issued: Issued, state: str, *, timeout_s: float = 15) -> asyncpg.Record:
        """Wait until the slot is in ``state``."""

        async def there() -> asyncpg.Record | None:
            row = await self.find_slot(issued)
            return row if row is not None and row["state"] == state else None

        return await self.until(there, f"slot {state}", timeout_s=timeout_s)

    def steps(self, issued: Issued) -> list[str]:
        """Return the steps published for the slot, in order, each event once."""
        found: dict[str, str] = {}
        for event in self.events:
            if event.slot_id == issued.event.slot_id:
                found.setdefault(event.id, event.step)
        return list(found.values())

    async def step(self, issued: Issued, step: str, *, timeout_s: float = 15) -> RotationEvent:
        """Wait until the slot's step was published."""

        async def there() -> RotationEvent | None:
            for event in self.events:
                if event.slot_id == issued.event.slot_id and event.step == step:
                    return event
            return None

        return await self.until(there, f"step {step}", timeout_s=timeout_s)

    async def until(
        self, there: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = 15
    ) -> T:
        """Wait until ``there`` returns something."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await there()
                    if found:
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{what} did not come in {timeout_s} s") from None

    @asynccontextmanager
    async def running(self, *instances: str) -> AsyncIterator[None]:
        """Run est-renewal (one per instance name) in this process."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for name in instances or ("renewal-0",):
                settings = self.settings.model_copy(update={"instance": name})
                group.create_task(serve(settings, stop))
            try:
                yield
            finally:
                stop.set()


def settings_for(platform: Platform) -> RenewalSettings:
    return RenewalSettings.model_validate(
        {
            "instance": "renewal-0",
            "bus": platform.bus("renewal").model_dump(),
            "database": platform.database("renewal").model_dump(),
            "event_consumer": {"retry_s": 0.2},
            "scheduler": {"poll_s": 0.1, "sweep_after_s": 1},
            "rotation": {"client_reload": "0s", "stall_safety": "10s", "proof_wait": "1s"},
            "windows": {"recheck_s": 0.2, "patience": 1},
            "renewal_info": {"check_every_s": 0.2},
            "stop_timeout_s": 5,
        }
    )


async def prepare(platform: Platform, settings: RenewalSettings) -> None:
    """Declare the streams and migrate renewal's schema."""
    bus = await platform.provisioner()
    streams = [*owned_by("ca-signer"), *owned_by("audit")]
    await declare(bus, streams, AUDIT_CONSUMERS, replicas=1)
    await bus.close()
    await migrate(settings)


@asynccontextmanager
async def renewal_bench(platform: Platform, settings: RenewalSettings) -> AsyncIterator[Bench]:
    """Connect everybody around est-renewal; its tables are emptied."""
    database = await platform.postgres.superuser()
    await database.execute(
        "truncate renewal.certificate, renewal.renewal_slot, renewal.revocation,"
        " renewal.failed_delivery"
    )
    signer = await Bus.connect(platform.bus("ca-signer"), "ca-signer", "test")
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    agent = await Bus.connect(platform.bus("agent"), "agent-web", "test")
    auditor = await Bus.connect(platform.bus("audit"), "audit", "test")
    found = Bench(settings, database, signer, frontend)

    async def receive(message: Msg) -> None:
        found.events.append(decode(RotationEvent, message.data))
        found.message_ids.append((message.headers or {}).get("Nats-Msg-Id", ""))

    await agent.client.subscribe(f"pki.rotation.*.{TENANT}.{SERVICE}", cb=receive)
    stop = asyncio.Event()

    async def collect(stream: str) -> None:
        consumer = PullConsumer(auditor, stream, AUDIT_CONSUMER, credit=500)
        await consumer.start()
        while not stop.is_set():
            await consumer.maintain()
            if await consumer.wait(0.1):
                for delivery in consumer.take(500):
                    records = decode(AuditBatch, delivery.data).records
                    found.records += [
                        AuditRecord.model_validate(fact)
                        for record in records
                        for fact in expanded(record.model_dump(exclude_none=True))
                    ]
                    found.record_topics |= {(r.action, delivery.topic) for r in records}
                    await delivery.ack()
        await consumer.pause()

    async with asyncio.TaskGroup() as group:
        for stream in (AUDIT_ISSUE, AUDIT_REFUSAL):
            group.create_task(collect(stream))
        try:
            yield found
        finally:
            stop.set()
    for bus in (signer, frontend, agent, auditor):
        await bus.close()
    if not database.is_closed():
        await database.close()
