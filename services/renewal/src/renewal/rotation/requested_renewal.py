"""Renewals that campaigns request, by certificate: applied at once, or kept until they can be.

- The active certificate of a slot: the slot becomes due (``renewal.rotation.early_renewal``).
- A certificate that is not proven in use yet: its window moves at once, its slot becomes due when
  the certificate is the active one. Until then the request is a row of ``renewal_request``.
- A certificate that renewal does not know: its event comes later. The request is kept as well.
- A certificate that was replaced, revoked or has expired: there is nothing to renew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import asyncpg

from estcore.messages.events import EarlyReason, RenewalRequested
from estcore.runtime.database import Connection
from renewal.rotation.early_renewal import EarlyRenewal, renew_early

RECHECK = dt.timedelta(seconds=10)
_LIMIT = 500
_STORE = """
insert into renewal_request as r (fingerprint_sha256, serial, due_at, reason, renew_by,
    explanation_url, keep_until)
select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::timestamptz[],
    $6::text[], $7::timestamptz[])
on conflict (fingerprint_sha256) do update set due_at = least(r.due_at, excluded.due_at),
    reason = excluded.reason, renew_by = excluded.renew_by,
    explanation_url = excluded.explanation_url
where excluded.renew_by < r.renew_by
"""
_OF_FINGERPRINTS = """
select fingerprint_sha256, serial, due_at, reason, renew_by, explanation_url from renewal_request
where fingerprint_sha256 = any($1::text[]) order by fingerprint_sha256 for update
"""
_KEPT = """
select fingerprint_sha256, serial, due_at, reason, renew_by, explanation_url from renewal_request
where checked_at <= now() - $1::interval order by checked_at limit $2 for update skip locked
"""
_LOCK_SLOTS = """
select slot_id from renewal_slot where slot_id in (select slot_id from certificate
    where serial = any($1::text[]) and fingerprint_sha256 = any($2::text[]))
order by slot_id for update
"""
_CERTIFICATES = """
select c.fingerprint_sha256, c.issuance_id, c.slot_id, c.state,
    s.active_id = c.issuance_id as active
from certificate c join renewal_slot s using (slot_id)
where c.serial = any($1::text[]) and c.fingerprint_sha256 = any($2::text[])
"""
_FORGET = "delete from renewal_request where fingerprint_sha256 = any($1::text[])"
_PURGE = "delete from renewal_request where keep_until < now()"
_CHECKED = (
    "update renewal_request set checked_at = now() where fingerprint_sha256 = any($1::text[])"
)
_INFORM = """
update certificate set info_pending = true,
    changed_at = greatest(clock_timestamp(), changed_at + interval '1 microsecond')
where issuance_id = any($1::text[])
"""


async def request_renewals(connection: Connection, events: Sequence[RenewalRequested]) -> list[str]:
    """Apply requests in the caller's transaction; returns the ids of slots to publish.

    A repeated request changes nothing.
    """
    if not events:
        return []
    # Of several requests of one certificate the one that ends first counts.
    latest = {e.fingerprint_sha256: e for e in sorted(events, key=_end, reverse=True)}
    # One order for all replicas, or two of them wait for each other.
    ordered = sorted(latest.values(), key=lambda e: e.fingerprint_sha256)
    await connection.execute(
        _STORE,
        [e.fingerprint_sha256 for e in ordered],
        [e.serial for e in ordered],
        [e.requested_at for e in ordered],
        [e.reason for e in ordered],
        [_end(e) for e in ordered],
        [e.explanation_url for e in ordered],
        [e.not_after for e in ordered],
    )
    rows = await connection.fetch(_OF_FINGERPRINTS, list(latest))
    return await _apply(connection, rows, inform=True)


async def apply_kept(connection: Connection) -> list[str]:
    """Apply requests that were kept, where that is possible now; returns slots to publish."""
    await connection.execute(_PURGE)
    rows = await connection.fetch(_KEPT, RECHECK, _LIMIT)
    return await _apply(connection, rows, inform=False)


async def _apply(
    connection: Connection, rows: Sequence[asyncpg.Record], *, inform: bool
) -> list[str]:
    requests = {row["fingerprint_sha256"]: row for row in rows}
    if not requests:
        return []
    names = ([row["serial"] for row in rows], list(requests))
    await connection.fetch(_LOCK_SLOTS, *names)
    certificates = await connection.fetch(_CERTIFICATES, *names)
    active = [c for c in certificates if c["active"]]
    unproven = [c for c in certificates if not c["active"] and c["state"] == "next"]
    moved = await renew_early(
        connection, [_early(c["slot_id"], requests[c["fingerprint_sha256"]]) for c in active]
    )
    done = {c["fingerprint_sha256"] for c in certificates} - {
        c["fingerprint_sha256"] for c in unproven
    }
    await connection.execute(_FORGET, list(done))
    await connection.execute(_CHECKED, list(requests.keys() - done))
    if not inform:
        return moved
    await connection.execute(_INFORM, [c["issuance_id"] for c in unproven])
    return [*moved, *(str(c["slot_id"]) for c in unproven)]


def _early(slot_id: object, row: asyncpg.Record) -> EarlyRenewal:
    reason: EarlyReason = row["reason"]
    return EarlyRenewal(
        str(slot_id), row["due_at"], reason, row["renew_by"], row["explanation_url"]
    )


def _end(event: RenewalRequested) -> dt.datetime:
    """Return the end of the window; without one it is over at once."""
    return event.renew_by or event.requested_at
