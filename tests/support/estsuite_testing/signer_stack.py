"""ca-signer in this process, on a real ledger and a real bus, driven like a front end drives it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import yaml

from ca_signer.ceremony import offline_ca
from ca_signer.connections import SCHEMA, SCRIPTS
from ca_signer.frontend_state import FrontendStatePublisher
from ca_signer.issuance.approvals import ApprovalStore
from ca_signer.issuance.consumer import RequestConsumer
from ca_signer.issuance.decision import decide
from ca_signer.issuance.decision_context import presented_fingerprint
from ca_signer.issuance.idempotency import IntendedIssuances, RequestResolver
from ca_signer.issuance.request_handler import RequestHandler
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.ledger.refusals import RefusalStore
from ca_signer.main import load_signing_context
from ca_signer.model import IssuanceIntent
from ca_signer.operators.assembly import Operations, assemble
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.publishing.reconciliation_windows import ReconciliationWindows
from ca_signer.publishing.secret_verifiers import SecretPublisher
from ca_signer.settings import SignerSettings
from ca_signer.signing.batch_handler import BatchHandler
from ca_signer.signing.cycle import IssuanceCycle
from ca_signer.signing.issuers import SigningContext
from ca_signer.signing.sweeper import Sweeper
from estcore import ids
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.audit import AuditBatch, AuditRecord
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, Principal
from estcore.messages.envelope import decode, encode
from estcore.messages.joined import join, split
from estcore.pki.profile import Priority
from estcore.runtime.bus import Bus, Incoming, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.database import Database
from estcore.runtime.migrations import migrate, migrations_url
from estcore.runtime.settings import read_secret
from estcore.runtime.topology import declare
from estcore.runtime.tracing import Tracing
from estcore.tlog.items import expanded
from estsetup import service_settings as suite_settings
from estsuite_testing.e2e_stack import POLICY, make_csr
from estsuite_testing.enrollment_secrets import EnrollmentSecrets
from estsuite_testing.platform import Platform

EVERY_FEATURE = Path(__file__).with_name("profiles.yaml")  # what no shipped example uses
PROFILES = Path(suite_settings.__file__).parent / "examples" / "profiles.yaml"


def signer_settings(platform: Platform, folder: Path, **changes: Any) -> SignerSettings:
    """Settings of a signer on the platform, with a CA of its own in the folder."""
    ca, passphrase = folder / "ca", folder / "ca.passphrase"
    if not passphrase.exists():
        passphrase.write_text("a long enough passphrase")
        passphrase.chmod(0o600)
        offline_ca.init(ca, name="Test", passphrase_file=passphrase, clock=SystemClock())
    raw = {
        "instance": "signer-test",
        "bus": platform.bus("ca-signer").model_dump(),
        "database": platform.database("ca-signer").model_dump(),
        "policy_file": POLICY,
        "profiles_file": PROFILES,
        "software_keys": "allow",
        "issuers": [
            {
                "issuer_id": "issuing",
                "certificate_file": ca / "issuing.pem",
                "chain_file": ca / "chain.pem",
                "key_file": ca / "issuing.key",
                "passphrase_file": passphrase,
            }
        ],
        "groups": {
            "default": {
                "labels": sorted(yaml.safe_load(POLICY.read_text())["labels"]),
                "profiles": ["service-mtls", "demo"],
            }
        },
        **changes,
    }
    return SignerSettings.model_validate(raw)


@dataclass
class SignerStack:
    """The parts of a signer and a front end's connection."""

    settings: SignerSettings
    decision_context: SigningContext
    bus: Bus
    frontend: Bus
    database: Database
    ledger: IssuanceStore
    resolver: RequestResolver[IssuanceIntent]
    publisher: EventPublisher
    cycle: IssuanceCycle
    batch: BatchHandler
    worker: RequestConsumer
    sweeper: Sweeper
    windows: ReconciliationWindows
    secrets: EnrollmentSecrets
    operations: Operations
    state: FrontendStatePublisher
    answers: dict[str, asyncio.Future[EnrollmentAnswered]] = field(default_factory=dict)
    seen: list[EnrollmentAnswered] = field(default_factory=list)
    answered_together: list[int] = field(default_factory=list)
    """How many answers each message to the front end had."""
    records_at: list[PullConsumer] = field(default_factory=list)
    records: list[AuditRecord] = field(default_factory=list)

    def message(self, csr: bytes | None = None, **changes: Any) -> EnrollmentRequested:
        """A request as est-frontend sends it; keyword arguments change one thing."""
        values: dict[str, Any] = {
            "id": ids.uuid7(),
            "source": "est-frontend/test",
            "time": dt.datetime.now(dt.UTC),
            "correlation_id": ids.uuid7(),
            "operation": "simpleenroll",
            "label": "services",
            "group": "default",
            "instance": "front",
            "issuer": "issuing",
            "priority": Priority.NORMAL,
            "principal": Principal(method="secret", name="load"),
            "csr": csr or make_csr(f"dev-{ids.uuid7()}")[1],
        }
        return EnrollmentRequested.model_validate(values | changes)

    async def send(
        self, message: EnrollmentRequested, *, topic: str | None = None, fresh_id: bool = False
    ) -> None:
        """Publish a request; ``fresh_id`` gets it past JetStream's own de-duplication."""
        where = topic or topics.request_topic(message.group, message.issuer, message.priority)
        message_id = ids.uuid7() if fresh_id else message.id
        self.expect_answer(message)
        await self.frontend.publish_confirmed([Outgoing(where, encode(message), message_id)])

    async def send_joined(self, *messages: EnrollmentRequested) -> None:
        """Publish requests of one topic in one message."""
        (topic,) = {topics.request_topic(m.group, m.issuer, m.priority) for m in messages}
        for message in messages:
            self.expect_answer(message)
        payload = join([encode(message) for message in messages])
        await self.frontend.publish_confirmed([Outgoing(topic, payload, ids.uuid7())])

    def expect_answer(self, message: EnrollmentRequested) -> None:
        """Keep the answer to a message that ``send`` does not send."""
        if message.id not in self.answers:
            self.answers[message.id] = asyncio.get_running_loop().create_future()

    async def answer_to(self, message: EnrollmentRequested) -> EnrollmentAnswered:
        """Return the answer to a message sent before."""
        async with asyncio.timeout(15):
            return await self.answers[message.id]

    async def ask(self, message: EnrollmentRequested, **more: Any) -> EnrollmentAnswered:
        """Publish a request and return the answer."""
        await self.send(message, **more)
        async with asyncio.timeout(15):
            return await self.answers[message.id]

    async def leave_intent(
        self, message: EnrollmentRequested | None = None, **changes: Any
    ) -> tuple[EnrollmentRequested, IssuanceIntent]:
        """Do what a signer does until it dies after step 5; returns message and intent."""
        message = message or self.message()
        topic = topics.request_topic(message.group, message.issuer, message.priority)
        fingerprint = presented_fingerprint(message)
        known = await self.ledger.known_certificates([fingerprint] if fingerprint else [])
        candidate = decide(message, topic, self.decision_context, known[0] if known else None)
        for name, value in changes.items():
            setattr(candidate.intent, name, value)
        assert await self.ledger.insert([candidate.intent]) == {candidate.intent.issuance_id}
        self.expect_answer(message)
        return message, candidate.intent

    async def row_of(self, intent: IssuanceIntent) -> Any:
        """The ledger's row of an intent."""
        sql = "select * from issuance where issuance_id = $1"
        return (await self.rows(sql, intent.issuance_id))[0]

    async def age_certificate(
        self, of: EnrollmentRequested | bytes, by: dt.timedelta = dt.timedelta(days=1)
    ) -> None:
        """Let a certificate, named by its request or its DER, be issued so long ago."""
        column, value = _named(of)
        sql = f"update issuance set issued_at = issued_at - $2::interval where {column} = $1"
        await self.value(sql, value, by)

    async def expire_certificate(
        self, of: EnrollmentRequested | bytes, ago: dt.timedelta = dt.timedelta(seconds=1)
    ) -> None:
        """Let a certificate's lifetime have ended."""
        column, value = _named(of)
        sql = f"update issuance set not_after = now() - $2::interval where {column} = $1"
        await self.value(sql, value, ago)

    async def mark_revoked(self, of: EnrollmentRequested | bytes) -> None:
        """Let a certificate be revoked in the ledger, without the events of a revocation."""
        column, value = _named(of)
        await self.value(f"update issuance set revoked_at = now() where {column} = $1", value)

    async def expire_lease(self, *intents: IssuanceIntent) -> None:
        """Let the signer that recorded the intents be dead for longer than its lease."""
        await self.rows(
            "update issuance set lease_until = now() - interval '1 second' "
            "where issuance_id = any($1::uuid[])",
            [intent.issuance_id for intent in intents],
        )

    async def make_stale(self, intent: IssuanceIntent) -> None:
        """Let an intent be too old to be signed, and its lease have ended."""
        await self.value(
            "update issuance set sign_before = now() - interval '1 second' where issuance_id = $1",
            intent.issuance_id,
        )
        await self.expire_lease(intent)

    async def expire_approval(self, subject: str) -> None:
        """Let the time to approve, or to fetch what was approved, be over."""
        await self.value(
            "update approval set expires_at = now() - interval '1 second' where subject = $1",
            subject,
        )

    async def shorten_crl(self, left: dt.timedelta = dt.timedelta(0)) -> None:
        """Let the CRLs of the issuer have so much time left."""
        await self.value(
            "update crl set next_update = now() + $1::interval where issuer_id = 'issuing'", left
        )

    async def audited(self, action: str) -> list[AuditRecord]:
        """Every fact with that action on record since the stack started, in order."""
        for consumer in self.records_at:
            await consumer.maintain()
            for delivery in consumer.take(1000):
                decode(AuditBatch, delivery.data)  # as audit reads it
                for record in json.loads(delivery.data)["records"]:
                    self.records.extend(map(AuditRecord.model_validate, expanded(record)))
        return [record for record in self.records if record.action == action]

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(sql, *values)

    async def value(self, sql: str, *values: Any) -> Any:
        async with self.database.connection() as connection:
            return await connection.fetchval(sql, *values)

    async def answered(self, message: Incoming) -> None:
        payloads = split(message.payload)
        self.answered_together.append(len(payloads))
        for answer in (decode(EnrollmentAnswered, payload) for payload in payloads):
            self.seen.append(answer)
            future = self.answers.get(answer.request_id)
            if future is not None and not future.done():
                future.set_result(answer)


def _named(of: EnrollmentRequested | bytes) -> tuple[str, object]:
    return ("certificate", of) if isinstance(of, bytes) else ("request_id", of.id)


async def prepare(settings: SignerSettings) -> None:
    """Migrate schema and streams, as the services' ``migrate`` do."""
    await migrate(settings.database, schema=SCHEMA, scripts=SCRIPTS)
    seed_file = settings.bus.migration_nkey_seed_file
    assert seed_file is not None
    bus = await Bus.connect(settings.bus, "migrate", "test", seed=read_secret(seed_file, "seed"))
    await declare(
        bus,
        topics.STREAMS,
        [
            *topics.AUDIT_CONSUMERS,
            *topics.SIGNER_CONSUMERS,
            *topics.signer_consumers("issuing"),
        ],
        replicas=1,
    )
    await bus.close()


@contextlib.asynccontextmanager
async def signer_stack(
    platform: Platform, folder: Path, *, running: bool = True, **changes: Any
) -> AsyncIterator[SignerStack]:
    """A signer ready to serve; ``running=False`` leaves worker and sweeper to the test."""
    settings = signer_settings(platform, folder, **changes)
    await prepare(settings)
    decision_context = load_signing_context(settings)
    clock = SystemClock()
    database = await Database.connect(settings.database, "ca-signer", SCHEMA)
    bus = await Bus.connect(settings.bus, "ca-signer", settings.instance)
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "front")
    ledger = IssuanceStore(database, lease_s=settings.lease_s)
    refusals = RefusalStore(database)
    resolver = RequestResolver(ledger, IntendedIssuances(ledger), ApprovalStore.of(settings))
    publisher = EventPublisher(bus, clock, settings.instance)
    tracing = Tracing(settings.telemetry, "ca-signer", "test")
    cycle = IssuanceCycle(ledger, publisher, decision_context.issuers, tracing)
    handler = RequestHandler(
        bus=bus,
        ledger=ledger,
        refusals=refusals,
        resolver=resolver,
        source=cycle,
        publisher=publisher,
        decision_context=decision_context,
        max_attempts=settings.max_attempts,
    )
    batch = BatchHandler(handler, ledger, cycle, tracing)
    stack = SignerStack(
        settings=settings,
        decision_context=decision_context,
        bus=bus,
        frontend=frontend,
        database=database,
        ledger=ledger,
        resolver=resolver,
        publisher=publisher,
        cycle=cycle,
        batch=batch,
        worker=RequestConsumer(
            bus, database, batch, issuers=["issuing"], batch_size=64, in_flight=2
        ),
        sweeper=Sweeper(
            ledger=ledger,
            refusals=refusals,
            cycle=cycle,
            publisher=publisher,
            decision_context=decision_context,
            every_s=0.2,
        ),
        windows=ReconciliationWindows(
            bus=bus,
            ledger=ledger,
            publisher=publisher,
            clock=clock,
            length=dt.timedelta(seconds=5),
            grace=dt.timedelta(seconds=1),
        ),
        secrets=EnrollmentSecrets(database, SecretPublisher(database, bus, clock)),
        operations=assemble(
            bus,
            database,
            publisher,
            decision_context,
            every_s=0.2,
            crl_lifetime_s=settings.crl_lifetime_s,
        ),
        state=FrontendStatePublisher(bus, database, decision_context, look_every_s=0.1),
    )
    auditor = await Bus.connect(platform.bus("audit"), "audit", "test")
    for stream in (topics.AUDIT_ISSUE, topics.AUDIT_REFUSAL):
        consumer = PullConsumer(auditor, stream, topics.AUDIT_CONSUMER, credit=2000)
        await consumer.start()
        stack.records_at.append(consumer)
    await frontend.subscribe("est.reply.default.front.*", stack.answered)
    await stack.state.publish()
    for name in ("load", "other"):
        if not await stack.value("select true from secret where secret_id = $1", name):
            await stack.secrets.create(name, lifetime=dt.timedelta(days=1), one_time=False)
    stop = asyncio.Event()
    jobs = [stack.operations.listener.run, stack.operations.outbox.run]
    jobs += [
        stack.worker.run,
        stack.cycle.keep_leases,
        stack.cycle.keep_marking,
        stack.windows.run,
        stack.state.run,
    ]
    tasks = [asyncio.ensure_future(job(stop)) for job in jobs if running]
    try:
        yield stack
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await auditor.close()
        await frontend.close()
        await bus.close()
        await database.close()


async def as_owner(platform: Platform, sql: str) -> None:
    """Run SQL on the ledger as the owner of its tables."""
    settings = platform.database("ca-signer")
    url = migrations_url(settings).render_as_string(hide_password=False)
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def poison(platform: Platform, message: EnrollmentRequested) -> None:
    """Let the ledger refuse the row of a request, for no reason that ca-signer knows."""
    await as_owner(
        platform,
        "create or replace function ca_signer.poison() returns trigger language plpgsql as $$ begin "
        f"if new.request_id = '{message.id}' then raise exception 'poisoned'; end if; "
        "return new; end $$; create or replace trigger poison before insert on ca_signer.issuance "
        "for each row execute function ca_signer.poison()",
    )
