"""What an issuance row stores, so that any signer can publish it again at any time."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from estcore.errors import NotAuthorized
from estcore.messages.audit import AuditRecord, Origin
from estcore.messages.enrollment import Source
from estcore.messages.envelope import DER, Part
from estcore.messages.events import EnrollmentRejected
from estcore.pki.der import children
from estcore.pki.profile import Expiry, Priority, RenewalMode

OPEN_SUBMISSION_STATES = ("recorded", "submitted", "pending", "unknown")
OPEN_SUBMISSIONS = "state in ('recorded', 'submitted', 'pending', 'unknown')"
"""Submissions to an upstream CA that have no final outcome yet, as names and as SQL."""

MANAGED = "managed"
"""The operation of issuances that ca-signer makes when renewal asks it."""

EXPIRED = NotAuthorized("the request expired before it was signed", code="request.expired")


class RequestFacts(Part):
    """Facts of the request that no query needs, stored as JSON beside the row."""

    correlation_id: str
    traceparent: str | None = None
    operation: str
    group: str
    instance: str
    label: str
    principal: str
    auth_method: str
    presented_serial: str | None = None
    presented_sha256: str | None = None
    rule: str
    policy_version: str
    profile_version: str
    priority: Priority
    key_algorithm: str
    csr_sha256: str
    origin: Origin = Origin()
    linked: str | None = None
    predecessor_serial: str | None = None
    predecessor_id: str | None = None
    same_key: bool = False
    mode: RenewalMode = "agent"
    expiry: Expiry = "unexpected"
    reaction_time_s: int
    overlap_s: int
    spread: float
    team: str | None = None
    cluster: str | None = None
    csr: DER | None = None
    """Of profiles with managed renewal only: ca-signer renews by it."""
    recipient: DER | None = None
    """The certificate that the keys of managed renewals are sealed for; none: the one renewed."""
    recipient_capabilities: DER | None = None
    """SMIMECapabilities of its holder (RFC 8551 section 2.5.2)."""


def request_origin(source: Source) -> Origin:
    """Return where a request came from, as records say it."""
    return Origin(
        peer=source.peer,
        tls_version=source.tls_version,
        tls_cipher=source.tls_cipher,
        user_agent=source.user_agent,
        client_correlation_id=source.client_correlation_id,
    )


@dataclass
class IssuanceIntent:
    """An issuance on its way: the row of step 5, held by us under ``fence``.

    ``serial_number`` is 0 as long as an upstream CA has not chosen it.
    """

    issuance_id: str
    enrollment_id: bytes
    request_id: str
    issuer_id: str
    serial_number: int
    tbs: bytes
    tenant: str
    service: str
    profile: str
    slot_id: str
    subject: str
    san: tuple[str, ...]
    spki_sha256: bytes
    not_before: dt.datetime
    not_after: dt.datetime
    predecessor_sha256: bytes | None
    presented_sha256: bytes | None
    secret_id: str | None
    sign_before: dt.datetime
    context: RequestFacts
    fence: int = 1


@dataclass(frozen=True)
class IssuedCertificate:
    """A stored certificate with everything its announcement needs."""

    intent: IssuanceIntent
    certificate: bytes
    issued_at: dt.datetime

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hexadecimal."""
        return sha256(self.certificate).hexdigest()

    @property
    def tbs(self) -> bytes:
        """The TBS inside the certificate, which are the recorded ones."""
        return children(self.certificate)[0]


@dataclass(frozen=True)
class KnownCertificate:
    """Immutable facts of a certificate in the ledger, found by its fingerprint."""

    issuance_id: str
    fingerprint: bytes
    issuer_id: str
    serial_number: int
    tenant: str
    service: str
    profile: str
    slot_id: str
    spki_sha256: bytes
    not_after: dt.datetime
    certificate: bytes
    team: str | None = None
    cluster: str | None = None


class Refusal(Part):
    """A refused request as the ledger keeps it: enough to announce it again."""

    event: EnrollmentRejected
    record: AuditRecord
