"""Certificate search index, kept separate from the issuance table.

Issuance rows are wide, and have the indexes of the issuance cycle; a search needs others. A narrow
row per certificate, and one per name, are inserted when a certificate is announced: in groups, not
while a request waits, and exactly once, since the sweeper repeats what a crash left.
``ca_signer.ledger.certificate_search`` reads them.
"""

from __future__ import annotations

from typing import Any

from estcore.runtime.database import Connection

# The rows are locked, so that a revocation of the same moment is either in them or finds the
# certificate entered.
_ENTER = r"""with announced as (
  delete from unannounced where issuance_id = any($1::uuid[])),
marked as (
  select issuance_id, issuer_id, tenant, service, profile, slot_id, subject,
    san, not_after, issued_at, revoked_at, state, context
  from issuance where issuance_id = any($1::uuid[]) for share),
added as (
  insert into certificate (issuance_id, issuer_id, tenant, service, team, cluster,
    profile, slot_id, not_after, revoked_at)
  select issuance_id, issuer_id, tenant, service, context::json->>'team',
    context::json->>'cluster', profile, slot_id, not_after, revoked_at
  from marked where state = 'issued' order by issued_at
  on conflict (issuance_id) do nothing returning no, issuance_id)
insert into certificate_name (name, no)
select distinct left(lower(n.name), 400), a.no
from added a join marked m using (issuance_id), lateral (
  select substr(entry, strpos(entry, ':') + 1) from unnest(string_to_array(m.san, E'\n')) entry
  union all
  select substr(part, strpos(part, '=') + 1)
  from regexp_split_to_table(m.subject, '(?<!\\)[,+]') part) n(name)
where n.name <> ''"""


async def enter(connection: Connection, issuance_ids: list[str]) -> None:
    """Mark certificates as announced and enter them; those known already stay as they are."""
    await connection.execute(_ENTER, issuance_ids)


async def note_revocation(connection: Connection, issuance_id: str, *, revoked: bool) -> None:
    """Follow a revocation or a release, in the transaction of the row."""
    await connection.execute(
        "update certificate set revoked_at = case when $2 then coalesce(revoked_at, now()) end "
        "where issuance_id = $1",
        issuance_id,
        revoked,
    )


async def note_revocations(connection: Connection, issuance_ids: list[Any]) -> None:
    """Follow revocations, in the transaction of the rows."""
    await connection.execute(
        "update certificate set revoked_at = coalesce(revoked_at, now()) "
        "where issuance_id = any($1::uuid[])",
        issuance_ids,
    )
