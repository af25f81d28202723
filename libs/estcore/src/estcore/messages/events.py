"""What happened: certificates, rotations, issuers. Past tense, facts, no secrets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from hashlib import sha256
from typing import Literal

from pydantic import Field

from estcore.messages.envelope import DER, Message, Part, Token
from estcore.pki.profile import Expiry, Priority, RenewalMode


class CertificateRef(Part):
    """A certificate as rotation events name it."""

    serial: str = Field(description="lower-case hexadecimal")
    not_before: dt.datetime
    not_after: dt.datetime
    spki_sha256: str
    fingerprint_sha256: str


class CertificateIssued(Message):
    """``pki.certificate.issued.joined``, one a line; ``id`` is the issuance id."""

    tenant: Token
    service: Token
    slot_id: str
    issuer_id: Token
    profile: Token
    priority: Priority
    label: str
    subject: str
    san: tuple[str, ...] = ()
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime
    issued_at: dt.datetime = Field(description="commit time by the ledger's clock; windows use it")
    spki_sha256: str
    fingerprint_sha256: str
    certificate: DER
    predecessor_serial: str | None = None
    predecessor_fingerprint: str | None = None
    same_key: bool = False
    mode: RenewalMode = "agent"
    expiry: Expiry = "unexpected"
    reaction_time_s: int
    overlap_s: int
    spread: float


class EnrollmentRejected(Message):
    """``pki.certificate.rejected.<tenant>.<service>``; ``id`` is the request id."""

    tenant: Token
    service: Token
    kind: str
    code: str
    reason: str


class EnrollmentPending(Message):
    """``pki.certificate.pending.<tenant>.<service>``: an open ticket, answered 202 until then."""

    tenant: Token
    service: Token
    enrollment_id: str
    until: dt.datetime


class CertificateRevoked(Message):
    """``pki.certificate.revoked.<tenant>.<service>``."""

    tenant: Token
    service: Token
    issuer_id: Token
    serial: str
    fingerprint_sha256: str
    reason: str
    revoked_at: dt.datetime


EarlyReason = Literal["incident", "ca_rollover", "policy_change", "operator"]
"""Why a certificate is renewed before its time."""


class RenewalRequested(Message):
    """``pki.certificate.renewal-requested.joined``, one a line: renew a certificate now.

    An operator's campaign reached this certificate. ``id`` follows from campaign and issuance.
    """

    campaign_id: str
    tenant: Token
    service: Token
    issuer_id: Token
    serial: str
    fingerprint_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    not_after: dt.datetime
    reason: EarlyReason
    requested_at: dt.datetime = Field(description="the certificate is due from this moment on")
    renew_by: dt.datetime | None = Field(
        default=None, description="end of the campaign's window; none: at once"
    )
    explanation_url: str | None = Field(
        default=None, max_length=512, pattern=r"^[!-~]+$", description="why; clients show it"
    )


class RenewalRefused(Message):
    """``pki.certificate.renewal-refused.<tenant>.<service>``: ca-signer does not renew it.

    The answer to ``rotation.requested``, final until the policy or the certificate changes.
    """

    tenant: Token
    service: Token
    slot_id: str
    rotation_id: str
    fence: int = Field(description="of the request that is refused")
    kind: str
    code: str
    reason: str


RotationStep = Literal[
    "due",
    "requested",
    "issued",
    "overlap",
    "activated",
    "deprecated",
    "retired",
    "lease_expired",
    "failed",
    "stalled",
    "expired",
    "ended",
]


class RotationEvent(Message):
    """``pki.rotation.<step>.<tenant>.<service>``, published by renewal only."""

    step: RotationStep
    tenant: Token
    service: Token
    slot_id: str
    rotation_id: str
    generation: int = Field(description="the generation this rotation leads to")
    profile: Token
    priority: Priority
    label: str
    mode: RenewalMode
    issuer_id: Token
    fence: int
    old: CertificateRef | None = None
    new: CertificateRef | None = None
    due_at: dt.datetime | None = None
    respond_by: dt.datetime | None = Field(
        default=None, description="due: the lease; renewal announces again after it"
    )
    reason: Literal["lifetime", "incident", "ca_rollover", "policy_change", "operator"] | None = (
        None
    )
    renew_by: dt.datetime | None = Field(
        default=None, description="due for a reason other than its lifetime: the wished end"
    )
    explanation_url: str | None = Field(default=None, description="why it is due early")
    overlap_until: dt.datetime | None = None
    proof: Literal["mtls_seen", "agent_ack", "operator"] | None = None
    deprecated_at: dt.datetime | None = None
    retire_at: dt.datetime | None = None
    disposition: Literal["expired", "revoked"] | None = None
    error_code: str | None = Field(default=None, description="failed: why ca-signer refused")
    attempt: int | None = None
    seconds_to_expiry: int | None = None


class WindowSum(Part):
    """What the ledger committed in [start, end).

    ``digest`` is the XOR of SHA-256(issuance id) over the window, hexadecimal, so it needs no
    order; consumers keep the same sum and ask for windows that differ.
    """

    start: dt.datetime
    end: dt.datetime
    count: int
    digest: str


class WindowClosed(Message, WindowSum):
    """``pki.ca.window``: the sum of one closed window (anti-entropy)."""


def window_digest(issuance_ids: Iterable[str]) -> str:
    """Return the digest of a window: the XOR of SHA-256 over the ids, 64 hexadecimal digits."""
    total = 0
    for issuance_id in issuance_ids:
        total ^= int.from_bytes(sha256(issuance_id.encode()).digest(), "big")
    return f"{total:064x}"


WINDOW_DIGEST_SQL = (
    "bit_xor(('x' || encode(sha256(convert_to(issuance_id, 'UTF8')), 'hex'))::bit(256))"
)
"""``window_digest`` as an aggregate of PostgreSQL over a text column ``issuance_id``."""

WINDOW_S = 60
DAY_S = 86_400
MAX_WINDOWS = 1500
"""Windows of one answer: a day in minutes, or four years in days."""


def window_sums_sql(rows: str) -> str:
    """Return the sums of [$2, $3) in windows of $1, for ``rows`` of issuance_id and issued_at."""
    return (
        f"select date_bin($1, issued_at, 'epoch'::timestamptz) as start, count(*) as count, "  # noqa: S608
        f"{WINDOW_DIGEST_SQL} as digest from {rows} "
        "where issued_at >= $2 and issued_at < $3 group by 1 order by 1"
    )


class WindowsRequested(Part):
    """Core request ``pki.command.ca-signer.windows``: the sums of all windows of a time.

    A window event can be lost together with the events it guards, so consumers ask as well: at
    start, after each reconnect and every hour.
    """

    requester: Token
    start: dt.datetime
    end: dt.datetime
    length_s: int = Field(ge=1, le=DAY_S)


class WindowsAnswered(Part):
    """The closed windows in which something was issued, oldest first."""

    windows: tuple[WindowSum, ...] = Field(max_length=MAX_WINDOWS)


class ReannounceRequested(Part):
    """Core request ``pki.command.ca-signer.reannounce``: announce these windows again."""

    requester: Token
    windows: tuple[dt.datetime, ...] = Field(max_length=1440, description="window starts")
    length_s: int | None = Field(
        default=None, ge=1, le=DAY_S, description="their length; that of ca-signer by default"
    )


class ReannounceAnswered(Part):
    """How many issuances were published again."""

    announced: int
