"""A signer that renews by itself, on real servers, with renewal's and a front end's connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.managed.decision import (
    grant_managed,
    managed_candidate,
    managed_enrollment_id,
)
from ca_signer.managed.fetches import RenewedCertificates
from ca_signer.managed.handler import ManagedRenewals
from ca_signer.managed.key_generator import KeyGenerator
from ca_signer.managed.store import ManagedStore
from ca_signer.model import IssuanceIntent
from estcore import ids
from estcore.est.renewal_info import cert_id
from estcore.messages import topics
from estcore.messages.envelope import decode, encode
from estcore.messages.events import RenewalRefused, RotationEvent
from estcore.messages.state import RenewedCertificateAnswered, RenewedCertificateRequested
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.stored_messages import stored_from
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.rotation_events import requested_event
from estsuite_testing.signer_stack import PROFILES, SignerStack, signer_stack

_REFUSED = "pki.certificate.renewal-refused.>"


def managed_profiles(folder: Path, **managed: Any) -> Path:
    """Write the example profiles, ``service-mtls`` with managed renewal; returns the file."""
    raw = yaml.safe_load(PROFILES.read_text())
    for profile in raw["profiles"]:
        if profile["name"] == "service-mtls":
            rules = {"same_key": True, "max_key_age": "100d"} | managed
            profile["renewal"] |= {"mode": "managed", "managed": rules}
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@dataclass
class Managed:
    """A signer with managed renewal running, and the bus of renewal."""

    signer: SignerStack
    renewals: ManagedRenewals
    renewal: Bus

    async def enroll(self) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        key, csr = make_csr(f"dev-{ids.uuid7()}")
        certificate = (await self.signer.ask(self.signer.message(csr))).certificate
        assert certificate is not None
        return key, certificate

    @contextlib.contextmanager
    def other_rules(self) -> Iterator[DecisionContext]:
        """The signer's decision context, for a test to change; as before afterwards."""
        context = self.signer.decision_context
        before = (context.policy, context.profiles, context.groups)
        try:
            yield context
        finally:
            context.replace_rules(*before)

    async def slot(self, certificate: bytes) -> str:
        sql = "select slot_id from issuance where certificate_sha256 = $1"
        return str(await self.signer.value(sql, sha256(certificate).digest()))

    async def event(self, certificate: bytes, *, fence: int = 1) -> RotationEvent:
        return requested_event(certificate, await self.slot(certificate), fence=fence)

    async def request(self, *events: RotationEvent, times: int = 1) -> None:
        """Publish as renewal; repeated ones get past JetStream's memory of message ids."""
        for event in events:
            topic = topics.rotation_topic(event.step, event.tenant, event.service)
            out = [Outgoing(topic, encode(event), ids.uuid7()) for _ in range(times)]
            await self.renewal.publish_confirmed(out)

    async def leave_intent(
        self, event: RotationEvent, old: bytes, generator: KeyGenerator | None = None
    ) -> IssuanceIntent:
        """Do what a signer does until it dies after step 5."""
        context, fingerprint = self.signer.decision_context, sha256(old).digest()
        due = await self.renewals.store.due(fingerprint, managed_enrollment_id(fingerprint))
        granted = grant_managed(event, due, context)
        generated = None
        if generator is not None:
            assert granted.recipient is not None
            assert granted.due.context.csr is not None
            generated = await generator.make(
                granted.due.context.csr, granted.profile, granted.recipient, "issuing"
            )
        candidate = managed_candidate(event, granted, context, generated)
        await self.signer.resolver.resolve(candidate)
        return candidate.intent

    async def successors(self, certificate: bytes) -> list[Any]:
        return await self.signer.rows(
            "select * from issuance where predecessor_sha256 = $1 order by issuance_id",
            sha256(certificate).digest(),
        )

    async def renewed(self, certificate: bytes) -> bytes:
        """Wait for the one successor of a certificate."""
        async with asyncio.timeout(20):
            while True:
                rows = [r for r in await self.successors(certificate) if r["certificate"]]
                if rows:
                    assert len(rows) == 1
                    return bytes(rows[0]["certificate"])
                await asyncio.sleep(0.05)

    async def refusals(self) -> list[RenewalRefused]:
        found, following = [], 1
        while following:
            stored, following = await stored_from(
                self.signer.bus, topics.PKI_EVENTS, _REFUSED, following
            )
            found += [decode(RenewalRefused, message.payload) for message in stored]
        return found

    async def refused(self, event: RotationEvent) -> RenewalRefused:
        async with asyncio.timeout(20):
            while True:
                for refused in await self.refusals():
                    if refused.causation_id == event.id:
                        return refused
                await asyncio.sleep(0.05)

    async def records_of(self, event: RotationEvent) -> list[Any]:
        """Wait for the audit records of refusals that answer an event; each fact once."""
        async with asyncio.timeout(20):
            while True:
                records = await self.signer.audited("certificate.issue")
                own = {r.record_id: r for r in records if r.causation_id == event.id}
                if own:
                    return list(own.values())
                await asyncio.sleep(0.05)

    async def fetch(
        self, presented: bytes, named: bytes | None = None, **changes: Any
    ) -> RenewedCertificateAnswered:
        """Ask as a front end for what replaces a certificate."""
        certificate = x509.load_der_x509_certificate(named or presented)
        values = {
            "request_id": ids.uuid7(),
            "correlation_id": ids.uuid7(),
            "label": "services",
            "group": "default",
            "peer": presented,
            "certificate_id": cert_id(certificate),
        }
        request = RenewedCertificateRequested.model_validate(values | changes)
        answer = await self.signer.frontend.request(
            topics.fetch_topic("default"), encode(request), answered_by=("ca-signer",)
        )
        return decode(RenewedCertificateAnswered, answer)


def with_generated_keys(policy: Path) -> Path:
    """Let label ``services`` offer serverkeygen, by a secret or a certificate; returns the file."""
    raw = yaml.safe_load(policy.read_text())
    operations = ["simpleenroll", "simplereenroll", "serverkeygen"]
    raw["labels"]["services"]["operations"] = operations
    for rule in raw["rules"]:
        if rule["name"] == "load":
            rule["operations"] = operations
            principal = {"certificate_issuer": "issuing", "certificate_subject": "CN=dev-identity"}
            raw["rules"].append({**rule, "name": "by-certificate", "principal": principal})
            break
    policy.write_text(yaml.safe_dump(raw))
    return policy


@contextlib.asynccontextmanager
async def managed_stack(platform: Platform, folder: Path, **managed: Any) -> AsyncIterator[Managed]:
    """Run a signer whose profile ``service-mtls`` has managed renewal by these rules."""
    profiles = managed_profiles(folder, **managed)
    policy = with_generated_keys(policy_with_operators(folder))
    async with signer_stack(
        platform, folder, policy_file=policy, profiles_file=profiles, lease_s=2
    ) as signer:
        store = ManagedStore(signer.database)
        renewals = ManagedRenewals(
            bus=signer.bus,
            ledger=signer.ledger,
            store=store,
            resolver=signer.resolver,
            cycle=signer.cycle,
            publisher=signer.publisher,
            key_generator=KeyGenerator(signer.decision_context, signer.resolver, signer.cycle),
            decision_context=signer.decision_context,
            max_attempts=3,
        )
        fetches = RenewedCertificates(
            bus=signer.bus,
            ledger=signer.ledger,
            store=store,
            decision_context=signer.decision_context,
        )
        renewal = await Bus.connect(platform.bus("renewal"), "renewal", "test")
        stop = asyncio.Event()
        tasks = [asyncio.ensure_future(job.run(stop)) for job in (renewals, fetches)]
        try:
            yield Managed(signer, renewals, renewal)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            await renewal.close()
