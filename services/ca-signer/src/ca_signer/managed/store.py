"""Statements of managed renewal: what is due, and what replaces a client's certificate."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from ca_signer.ledger.issuance_rows import known_certificate_of
from ca_signer.managed.decision import DueCertificate
from ca_signer.model import MANAGED, RequestFacts
from estcore.messages.envelope import decode
from estcore.runtime.database import Connection, Database

_DUE = f"""
select i.*, i.context::json->>'team' as team, i.context::json->>'cluster' as cluster,
    i.context::json->>'operation' = '{MANAGED}' and m.fetched_at is null as unfetched,
    (select k.created_at from key_binding k where k.spki_sha256 = i.spki_sha256) as key_since,
    not exists (select 1 from issuance n where n.slot_id = i.slot_id and n.state = 'issued'
        and n.issued_at > i.issued_at and n.revoked_at is null and n.not_after > now()
        and n.enrollment_id <> $2) as newest,
    exists (select 1 from enrollment e join issuance n using (issuance_id)
        where e.enrollment_id = $2 and n.state = 'issued' and n.revoked_at is null) as succeeded
from fingerprint f join issuance i using (issuance_id, certificate_sha256)
left join managed_issuance m using (issuance_id)
where f.certificate_sha256 = $1
"""  # noqa: S608 - our constant
_REVOKED = """
select true from fingerprint join issuance using (issuance_id, certificate_sha256)
where certificate_sha256 = $1 and revoked_at is not null
"""
_IDENTITY = """
select i.slot_id, i.revoked_at is not null as revoked, t.issuance_id as target_id
from fingerprint f join issuance i using (issuance_id, certificate_sha256)
left join issuance t on t.slot_id = i.slot_id and t.serial_number = $2 and t.state = 'issued'
where f.certificate_sha256 = $1
"""
_NEWEST = f"""
select i.issuance_id, i.issuer_id, i.certificate, m.sealed_key,
    i.context::json->>'operation' = '{MANAGED}' as managed,
    i.context::json->>'operation' = '{MANAGED}' and i.spki_sha256 <> $2
        and (m.issuance_id is null or not (i.context::json->>'same_key')::boolean) as generated
from issuance i left join managed_issuance m using (issuance_id)
where i.slot_id = $1 and i.state = 'issued' and i.revoked_at is null and i.not_after > now()
order by i.issued_at desc limit 1
"""  # noqa: S608 - our constant
_OPEN = "select exists (select 1 from issuance where slot_id = $1 and state = 'intended')"
_FETCHED = """
update managed_issuance set fetched_at = now() where issuance_id = $1 and fetched_at is null
"""
_FORGET_PROVEN = """
update managed_issuance m set sealed_key = null from fingerprint f
where m.sealed_key is not null and f.issuance_id = m.issuance_id
    and f.certificate_sha256 = any($1::bytea[])
"""
_FORGET = """
update managed_issuance m set sealed_key = null from issuance i
where m.sealed_key is not null and i.issuance_id = m.issuance_id and i.not_after < now()
"""


@dataclass(frozen=True)
class Identity:
    """The slot of a presented certificate, and the certificate named in the request if it is there.

    ``revoked`` is about the presented one.
    """

    slot_id: str
    revoked: bool
    target_id: str | None


@dataclass(frozen=True)
class NewestCertificate:
    """The newest good certificate of a slot.

    ``managed``: ca-signer made it by itself, and where ``generated`` its key as well, which the
    client does not show to have. That is ``sealed_key``, until the certificate is proven in use; a
    ledger that was restored from the audit log does not have it.
    """

    issuance_id: str
    issuer_id: str
    certificate: bytes
    sealed_key: bytes | None
    managed: bool
    generated: bool


class ManagedStore:
    """The statements, on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, fingerprint: bytes, enrollment_id: bytes) -> DueCertificate | None:
        """Return what is known of a certificate; None where the ledger does not know it.

        ``enrollment_id`` is that of its own managed renewal, which is no newer certificate.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_DUE, fingerprint, enrollment_id)
            if row is None:
                return None
            context = decode(RequestFacts, row["context"].encode())
            recipient_revoked = False
            if context.recipient is not None:
                recipient = sha256(context.recipient).digest()
                recipient_revoked = bool(await connection.fetchval(_REVOKED, recipient))
        key_since: dt.datetime | None = row["key_since"]
        return DueCertificate(
            certificate=known_certificate_of(row),
            context=context,
            succeeded=row["succeeded"],
            recipient_revoked=recipient_revoked,
            revoked=row["revoked_at"] is not None,
            newest=row["newest"],
            unfetched=row["unfetched"],
            key_since=key_since,
        )

    async def identity(self, presented: bytes, serial_number: bytes) -> Identity | None:
        """Return the slot of a presented certificate (DER), and one named by serial number."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_IDENTITY, sha256(presented).digest(), serial_number)
        if row is None:
            return None
        target = row["target_id"]
        return Identity(str(row["slot_id"]), row["revoked"], str(target) if target else None)

    async def newest(self, slot_id: str, presented_spki: bytes) -> NewestCertificate | None:
        """Return the newest good certificate of a slot, for a client with this key (SHA-256)."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_NEWEST, slot_id, presented_spki)
        if row is None:
            return None
        return NewestCertificate(
            str(row["issuance_id"]),
            row["issuer_id"],
            row["certificate"],
            row["sealed_key"],
            row["managed"],
            row["generated"],
        )

    async def is_open(self, slot_id: str) -> bool:
        """Return whether a certificate of the slot is being made."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_OPEN, slot_id))

    async def note_fetched(self, issuance_id: str) -> None:
        """Record that a client fetched a certificate; the first time counts."""
        async with self._database.connection() as connection:
            await connection.execute(_FETCHED, issuance_id)

    async def forget_expired_keys(self) -> None:
        """Delete sealed keys of certificates that have expired."""
        async with self._database.connection() as connection:
            await connection.execute(_FORGET)


async def forget_proven_keys(connection: Connection, fingerprints: Sequence[bytes]) -> None:
    """Delete the sealed keys of certificates that are proven in use: their clients have them."""
    await connection.execute(_FORGET_PROVEN, list(fingerprints))
