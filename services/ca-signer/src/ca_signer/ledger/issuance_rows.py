"""Rows of the ledger as values of the model, and back."""

from __future__ import annotations

import asyncpg

from ca_signer.model import IssuanceIntent, KnownCertificate, RequestFacts
from estcore.messages.envelope import decode, encode

SERIAL_OCTETS = 18

INTENT_COLUMNS = """issuance_id, enrollment_id, request_id, issuer_id, serial_number, fence, tbs,
 tenant, service, profile, slot_id, subject, san, spki_sha256, not_before, not_after,
 predecessor_sha256, sign_before, context"""
STALE = "(sign_before < now() or not_before > now() + interval '30 seconds')"
"""The intent is too old, or was decided by a clock that was ahead, and is not signed any more.

30 seconds are what a clock may be off (``estcore.runtime.clock_check.LIMIT_S``).
"""

KNOWN_COLUMNS = """issuance_id, certificate_sha256, issuer_id, serial_number, tenant, service,
  profile, slot_id, spki_sha256, not_after, certificate, context::json->>'team' as team,
  context::json->>'cluster' as cluster"""


def known_certificate_of(row: asyncpg.Record) -> KnownCertificate:
    """Return the certificate in a row with KNOWN_COLUMNS."""
    return KnownCertificate(
        issuance_id=str(row["issuance_id"]),
        fingerprint=row["certificate_sha256"],
        issuer_id=row["issuer_id"],
        serial_number=int.from_bytes(row["serial_number"], "big"),
        tenant=row["tenant"],
        service=row["service"],
        profile=row["profile"],
        slot_id=str(row["slot_id"]),
        spki_sha256=row["spki_sha256"],
        not_after=row["not_after"],
        certificate=row["certificate"],
        team=row["team"],
        cluster=row["cluster"],
    )


def serial_octets(number: int) -> bytes:
    """Return a serial number as the ledger keeps it: as many octets as ours have, or more."""
    return number.to_bytes(max((number.bit_length() + 7) // 8, SERIAL_OCTETS), "big")


def certified_values(intent: IssuanceIntent) -> tuple[object, ...]:
    """Return owner, profile, slot, names, key and validity, in the order of their columns."""
    return (
        intent.tenant,
        intent.service,
        intent.profile,
        intent.slot_id,
        intent.subject,
        "\n".join(intent.san),
        intent.spki_sha256,
        intent.not_before,
        intent.not_after,
        intent.predecessor_sha256,
    )


def intent_row(intent: IssuanceIntent) -> tuple[object, ...]:
    """Return an intent as the values of ``CHECKED``, in order."""
    return (
        intent.issuance_id,
        intent.enrollment_id,
        intent.request_id,
        intent.issuer_id,
        serial_octets(intent.serial_number),
        intent.tbs,
        *certified_values(intent),
        intent.presented_sha256,
        intent.secret_id,
        intent.sign_before,
        encode(intent.context).decode(),
    )


def intent_of(row: asyncpg.Record) -> IssuanceIntent:
    """Return the intent in a row with INTENT_COLUMNS."""
    return IssuanceIntent(
        issuance_id=str(row["issuance_id"]),
        enrollment_id=row["enrollment_id"],
        request_id=str(row["request_id"]),
        issuer_id=row["issuer_id"],
        serial_number=int.from_bytes(row["serial_number"], "big"),
        tbs=row["tbs"] or b"",
        tenant=row["tenant"],
        service=row["service"],
        profile=row["profile"],
        slot_id=str(row["slot_id"]),
        subject=row["subject"],
        san=tuple(filter(None, row["san"].split("\n"))),
        spki_sha256=row["spki_sha256"],
        not_before=row["not_before"],
        not_after=row["not_after"],
        predecessor_sha256=row["predecessor_sha256"],
        presented_sha256=None,
        secret_id=None,
        sign_before=row["sign_before"],
        context=decode(RequestFacts, row["context"].encode()),
        fence=row["fence"],
    )
