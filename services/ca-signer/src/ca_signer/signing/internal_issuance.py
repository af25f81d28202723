"""Issuance inside ca-signer: certificates of operators, OCSP responders and key generators.

They take the same cycle as every certificate: recorded, audited, linted, published.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuance.idempotency import (
    Answer,
    ExpiredIntent,
    InProgress,
    RequestResolver,
    Resume,
)
from ca_signer.issuance.tbs import candidate
from ca_signer.issuers.issuer import CACertificate
from ca_signer.model import EXPIRED, IssuanceIntent
from ca_signer.settings import SERVICE
from ca_signer.signing.cycle import IssuanceCycle
from estcore import ids
from estcore.errors import ConfigurationError, IssuerUnavailable
from estcore.messages.enrollment import EnrollmentRequested, Principal
from estcore.pki.csr import parse_csr
from estcore.pki.profile import Priority, Profile
from estcore.policy.document import Names, Owner, PrincipalMatch, Rule

_ATTEMPTS = 30
TENANT = "ca"


@dataclass(frozen=True)
class InternalRole:
    """A part of ca-signer that has a certificate of its own.

    ``operation`` names it in records, ``subject`` is the common name of its certificate.
    """

    operation: str
    subject: str
    profile: Profile


def internal_candidate(
    key: ec.EllipticCurvePrivateKey,
    issuer: CACertificate,
    decision_context: DecisionContext,
    role: InternalRole,
) -> Candidate:
    """Return the candidate for a certificate of ca-signer itself, by a key in its memory.

    Not by a rule of the policy: no client enrolls like this.
    """
    name = role.profile.name
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role.subject[:64])])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    octets = csr.public_bytes(Encoding.DER)
    rule = Rule(
        name=name,
        principal=PrincipalMatch(secret=name),
        owner=Owner(tenant=TENANT, service=name),
        labels=(name,),
        profiles=(name,),
        names=Names(),
    )
    message = EnrollmentRequested(
        id=ids.uuid7(),
        source=f"{SERVICE}/{role.operation}",
        time=decision_context.clock.now(),
        correlation_id=ids.uuid7(),
        operation="simpleenroll",
        label=name,
        group="none",
        instance="none",
        issuer=issuer.issuer_id,
        priority=Priority.NORMAL,
        principal=Principal(method="password", name=name),
        csr=octets,
    )
    owner = (TENANT, name)
    made = candidate(
        message, parse_csr(octets), decision_context, issuer, role.profile, rule, owner, None, None
    )
    changes = {
        "operation": role.operation,
        "principal": f"service:{SERVICE}",
        "auth_method": "internal",
        "mode": "poll",
    }
    made.intent.context = made.intent.context.model_copy(update=changes)
    return made


async def issue_internally(
    candidate: Candidate, resolver: RequestResolver[IssuanceIntent], cycle: IssuanceCycle
) -> bytes:
    """Take the candidate through the cycle; returns the certificate.

    Raises:
        RequestRejected: the ledger refuses it, for example a key of another owner.
        Unavailable: database, bus, audit or key store is unavailable.
    """
    for _ in range(_ATTEMPTS):
        match await resolver.resolve(candidate):
            case Resume(intent=intent):
                stored = await cycle.sign_and_store([intent])
                if stored:
                    await cycle.publish(stored)
                    await cycle.flush_unpublished()
                    await cycle.flush_published_marks()
                    return stored[0].certificate
            case Answer(issued=issued):
                return issued.certificate
            case ExpiredIntent(intent=intent):
                await cycle.abandon(intent, EXPIRED)
            case InProgress():
                await asyncio.sleep(1)
            case other:
                raise ConfigurationError(f"the ledger answers {type(other).__name__}")
    raise IssuerUnavailable("another process has this enrollment in hand; repeat it later")
