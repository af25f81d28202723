"""Requests that repeat an enrollment: the stored certificates of a batch, in one statement.

A fleet that lost its answers sends its requests again, all at once. What is not as plain as a good
certificate within its window is left to ``ca_signer.issuance.idempotency``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from ca_signer.ledger.issuance_rows import INTENT_COLUMNS, intent_of
from ca_signer.model import IssuanceIntent, IssuedCertificate
from estcore.runtime.database import Database

# The checks of a repetition that is resolved alone: the certificate is good and within its window;
# certificate and secret that ask are good; the request is none that had an answer before.
_NOTE = f"""with input as (
  select * from unnest($1::bytea[], $2::uuid[], $3::interval[], $4::bytea[], $5::text[])
  as t(enrollment_id, request_id, idempotency_window, presented_sha256, secret_id)),
repeated as (
  select i.request_id as repeated_by, i.enrollment_id, e.issuance_id
  from input i join enrollment e using (enrollment_id)
  join issuance s on s.issuance_id = e.issuance_id
  where s.state = 'issued' and s.revoked_at is null and s.request_id <> i.request_id
    and s.issued_at + i.idempotency_window > now()
    and not exists (select 1 from fingerprint f join issuance p using (issuance_id)
      where f.certificate_sha256 = i.presented_sha256 and p.revoked_at is not null)
    and (i.secret_id is null or exists (select 1 from secret c where c.secret_id = i.secret_id
      and c.revoked_at is null and c.not_after > now()))
    and not exists (select 1 from issuance o where o.request_id = i.request_id)),
noted as (
  insert into request (request_id, enrollment_id, outcome, issuance_id, announced_at)
  select repeated_by, enrollment_id, 'repeated', issuance_id, now() from repeated
  on conflict do nothing returning request_id)
select repeated_by, {", ".join(f"s.{name.strip()}" for name in INTENT_COLUMNS.split(","))},
  s.certificate, s.issued_at
from repeated r join noted n on n.request_id = r.repeated_by
join issuance s on s.issuance_id = r.issuance_id"""  # noqa: S608 - our constants


async def note_repeats(
    database: Database, repeats: Sequence[tuple[IssuanceIntent, dt.timedelta]]
) -> dict[str, IssuedCertificate]:
    """Note requests that repeat an enrollment; returns their stored certificates by request id.

    With each intent comes the window in which its enrollment is the same one. What is not returned
    is to be resolved alone.
    """
    intents = [intent for intent, _ in repeats]
    async with database.connection() as connection:
        rows = await connection.fetch(
            _NOTE,
            [intent.enrollment_id for intent in intents],
            [intent.request_id for intent in intents],
            [window for _, window in repeats],
            [intent.presented_sha256 for intent in intents],
            [intent.secret_id for intent in intents],
        )
    return {
        str(row["repeated_by"]): IssuedCertificate(
            intent_of(row), row["certificate"], row["issued_at"]
        )
        for row in rows
    }
