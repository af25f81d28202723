"""Progress of the members of campaigns: renewed, proven in use, revoked, finished.

- Renewed: the ledger has a younger certificate of the slot. Where the campaign revokes for
  ``keyCompromise``, one with the same key is no successor: it would keep the compromised key.
- Proven: renewal reported that a younger certificate of the slot is in use (``activated``). The
  ledger is asked whether it is one, and good.
- Deprecated: renewal reported that the overlap is over. Only then the certificate may be revoked,
  and only while its successor is good.
- Finished: see ``ca_signer.campaigns.store``.

Every statement may run twice and in any order. Members of campaigns that ended are not changed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import asyncpg

from ca_signer.campaigns.store import OPEN, issuance_ids
from ca_signer.ledger import revocations
from estcore.runtime.database import Connection

_BATCH = 1000
_MARGIN = dt.timedelta(minutes=1)
"""A transaction that issues commits within this time after its ``issued_at``."""
_OPEN = ", ".join(f"'{state}'" for state in OPEN)
SUCCEEDS = (
    "n.slot_id = o.slot_id and n.state = 'issued' and n.issued_at > o.issued_at "
    "and (c.revoke_reason is distinct from 'keyCompromise' or n.spki_sha256 <> o.spki_sha256)"
)
"""Whether issuance ``n`` is a successor of issuance ``o``, a member of campaign ``c``."""
_ANY_OPEN = f"select true from campaign where state in ({_OPEN}) limit 1"  # noqa: S608 - constants
# The slots are read first, in each of these: the planner knows nothing of members that were just
# selected, and would begin with all of them.
_ISSUED_SLOTS = "select distinct slot_id from issuance where issued_at >= $1 and state = 'issued'"
_PROVEN_SLOTS = """select distinct slot_id from fingerprint join issuance using (issuance_id)
where fingerprint.certificate_sha256 = any($1::bytea[])"""
_RENEWED = f"""update campaign_member m set renewed_at = n.issued_at
from issuance n, issuance o, campaign c
where m.slot_id = any($3::uuid[]) and m.campaign_id = $1
  and m.renewed_at is null and m.finished_at is null
  and n.issued_at >= $2 and o.issuance_id = m.issuance_id
  and c.campaign_id = m.campaign_id and {SUCCEEDS}"""  # noqa: S608 - constants
_PROVEN = f"""update campaign_member m set proven_at = now(),
  renewed_at = coalesce(m.renewed_at, n.issued_at),
  finished_at = coalesce(m.finished_at, case when c.revoke_reason is null then now() end)
from issuance n, issuance o, campaign c
where m.slot_id = any($2::uuid[]) and m.proven_at is null and m.finished_at is null
  and n.certificate_sha256 = any($1::bytea[]) and n.revoked_at is null
  and o.issuance_id = m.issuance_id and c.campaign_id = m.campaign_id and {SUCCEEDS}
  and c.state in ({_OPEN})"""  # noqa: S608 - constants
_DEPRECATED = f"""update campaign_member m set deprecated_at = now(),
  proven_at = coalesce(m.proven_at, now()), renewed_at = coalesce(m.renewed_at, n.issued_at)
from issuance o, issuance n, campaign c
where n.issuance_id = $1 and m.slot_id = $2
  and o.issuance_id = m.issuance_id and {SUCCEEDS}
  and n.revoked_at is null and n.not_after > now()
  and m.deprecated_at is null and m.finished_at is null and c.campaign_id = m.campaign_id
  and c.revoke_reason is not null and c.state in ({_OPEN})"""  # noqa: S608 - constants
_WISH = f"""select c.revoke_reason from campaign_member m join campaign c using (campaign_id)
join issuance o using (issuance_id) join issuance n on n.issuance_id = $2 and {SUCCEEDS}
where m.issuance_id = $1 and m.finished_at is null and c.revoke_reason is not null
  and c.state = 'running' order by c.proposed_at limit 1"""  # noqa: S608 - constants
_REVOKED_BY_ROTATION = f"""update campaign_member m set revoked_at = now(),
  revocation_announced_at = now(), finished_at = now()
from campaign c
where m.issuance_id = $1 and m.finished_at is null and c.campaign_id = m.campaign_id
  and c.revoke_reason is not null and c.state in ({_OPEN})"""  # noqa: S608 - constants
_REVOCABLE = f"""select o.issuance_id, o.revoked_at is null and o.not_after > now() as good,
  exists (select from issuance n where {SUCCEEDS}
    and n.revoked_at is null and n.not_after > now()) as succeeded
from issuance o, campaign c where c.campaign_id = $1 and o.issuance_id in (
  select issuance_id from campaign_member
  where campaign_id = $1 and deprecated_at is not null and finished_at is null limit $2)
order by o.issuance_id for update of o"""  # noqa: S608 - constants
_MARK_REVOKED = """update campaign_member set revoked_at = now(), finished_at = now()
where campaign_id = $1 and issuance_id = any($2::uuid[])"""
_MARK_FINISHED = """update campaign_member set finished_at = now()
where campaign_id = $1 and issuance_id = any($2::uuid[])"""
_UNPROVE = """update campaign_member set deprecated_at = null, proven_at = null
where campaign_id = $1 and issuance_id = any($2::uuid[])"""
_EXPIRED = """update campaign_member set finished_at = now()
where campaign_id = $1 and finished_at is null and not_after <= now()"""


async def find_renewals(connection: Connection, row: asyncpg.Record) -> None:
    """Mark the members whose slot got a younger certificate since the last look."""
    since = row["checked_at"] - _MARGIN
    slots = [r["slot_id"] for r in await connection.fetch(_ISSUED_SLOTS, since)]
    await connection.execute(_RENEWED, row["campaign_id"], since, slots)


async def any_open(connection: Connection) -> bool:
    """Return whether a campaign has not ended."""
    return bool(await connection.fetchval(_ANY_OPEN))


async def note_proofs(connection: Connection, fingerprints: Sequence[bytes]) -> None:
    """Mark members as proven; ``fingerprints`` are of certificates that were seen in use."""
    if await any_open(connection):
        slots = [r["slot_id"] for r in await connection.fetch(_PROVEN_SLOTS, list(fingerprints))]
        await connection.execute(_PROVEN, list(fingerprints), slots)


async def note_deprecation(connection: Connection, new: object, *, slot_id: object) -> None:
    """Mark that members of a slot that are older than its issuance ``new`` may be revoked.

    The job revokes them while the campaign runs, so a pause or a crash loses nothing.
    """
    await connection.execute(_DEPRECATED, new, slot_id)


async def revocation_wish(
    connection: Connection, issuance_id: object, *, successor: object
) -> str | None:
    """Return for which reason a running campaign wants a replaced certificate revoked."""
    reason: str | None = await connection.fetchval(_WISH, issuance_id, successor)
    return reason


async def note_revocation(connection: Connection, issuance_id: object) -> None:
    """Finish members whose certificate was revoked as its profile says; that is on record."""
    await connection.execute(_REVOKED_BY_ROTATION, issuance_id)


async def revoke_replaced(connection: Connection, row: asyncpg.Record) -> int:
    """Revoke members whose overlap is over, while their successor is good; returns how many."""
    campaign_id = row["campaign_id"]
    rows = await connection.fetch(_REVOCABLE, campaign_id, _BATCH)
    if not rows:
        return 0
    ended = [r for r in rows if not r["good"]]
    revocable = [r for r in rows if r["good"] and r["succeeded"]]
    alone = [r for r in rows if r["good"] and not r["succeeded"]]
    await revocations.set_revocations(
        connection, issuance_ids(revocable), row["revoke_reason"], f"campaign:{campaign_id}"
    )
    await connection.execute(_MARK_REVOKED, campaign_id, issuance_ids(revocable))
    await connection.execute(_MARK_FINISHED, campaign_id, issuance_ids(ended))
    # Its successor was revoked after it had been proven: another proof is needed.
    await connection.execute(_UNPROVE, campaign_id, issuance_ids(alone))
    return len(revocable)


async def finish_expired(connection: Connection, campaign_id: object) -> None:
    """Finish members that expired. ``ca_signer.ledger.revocations`` finishes revoked ones."""
    await connection.execute(_EXPIRED, campaign_id)


async def all_finished(connection: Connection, campaign_id: object) -> bool:
    """Return whether nothing is left to do for any member."""
    return not await connection.fetchval(
        "select true from campaign_member where campaign_id = $1 and finished_at is null limit 1",
        campaign_id,
    )
