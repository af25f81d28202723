"""Read issued certificates from the event stream, for a ledger whose audit log was lost as well.

Used only with ``reconcile --events``. Each certificate is verified with its issuer's key. Its
ownership is taken from the event: only ca-signer may publish events, but unlike audit records they
are not signed. Events do not say which request a certificate answers.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

from ca_signer.model import IssuanceIntent, IssuedCertificate, RequestFacts
from ca_signer.recovery.ledger_check import ISSUED
from estcore.errors import MalformedRequest
from estcore.messages.envelope import decode
from estcore.messages.events import CertificateIssued
from estcore.messages.joined import split
from estcore.messages.topics import PKI_EVENTS
from estcore.runtime.bus import Bus
from estcore.runtime.stored_messages import last_sequence, stored_from

_ANNOUNCED = "announced"


async def announced(bus: Bus, known: Collection[str]) -> list[IssuedCertificate]:
    """Return the certificates of the event stream whose issuance ids are not ``known``, each once.

    Raises:
        BusUnavailable: no answer in time.
        MalformedRequest: an event is unreadable, although only ca-signer may publish them.
    """
    issued: dict[str, IssuedCertificate] = {}
    newest = await last_sequence(bus, PKI_EVENTS, ISSUED)
    start = 1
    while 0 < start <= newest:
        stored, start = await stored_from(bus, PKI_EVENTS, ISSUED, start)
        for payload in (one for message in stored for one in split(message.payload)):
            event = decode(CertificateIssued, payload)
            if event.id not in known and event.id not in issued:
                issued[event.id] = _issued(event)
    return list(issued.values())


def _issued(event: CertificateIssued) -> IssuedCertificate:
    try:
        intent = IssuanceIntent(
            issuance_id=event.id,
            # One that no request can have: the next one of its holder is a new enrollment.
            enrollment_id=sha256(f"{_ANNOUNCED}/{event.id}".encode()).digest(),
            request_id=event.causation_id or event.id,
            issuer_id=event.issuer_id,
            serial_number=int(event.serial, 16),
            tbs=b"",
            tenant=event.tenant,
            service=event.service,
            profile=event.profile,
            slot_id=event.slot_id,
            subject=event.subject,
            san=event.san,
            spki_sha256=bytes.fromhex(event.spki_sha256),
            not_before=event.not_before,
            not_after=event.not_after,
            predecessor_sha256=bytes.fromhex(event.predecessor_fingerprint)
            if event.predecessor_fingerprint
            else None,
            presented_sha256=None,
            secret_id=None,
            sign_before=event.issued_at,
            context=_context(event),
        )
    except ValueError as exc:
        raise MalformedRequest(f"event {event.id} cannot be read", code="reconcile.event") from exc
    return IssuedCertificate(intent, event.certificate, event.issued_at)


def _context(event: CertificateIssued) -> RequestFacts:
    return RequestFacts(
        correlation_id=event.correlation_id,
        operation=_ANNOUNCED,
        group=_ANNOUNCED,
        instance=_ANNOUNCED,
        label=event.label,
        principal=_ANNOUNCED,
        auth_method=_ANNOUNCED,
        rule=_ANNOUNCED,
        policy_version=_ANNOUNCED,
        profile_version=_ANNOUNCED,
        priority=event.priority,
        key_algorithm=_ANNOUNCED,
        csr_sha256=_ANNOUNCED,
        predecessor_serial=event.predecessor_serial,
        same_key=event.same_key,
        mode=event.mode,
        expiry=event.expiry,
        reaction_time_s=event.reaction_time_s,
        overlap_s=event.overlap_s,
        spread=event.spread,
    )
