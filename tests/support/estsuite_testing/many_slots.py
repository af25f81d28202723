"""Slots of a large fleet with their certificates, written by SQL: for plans and figures of claims.

Lifetimes are mixed (24 h 5 %, 7 d 15 %, 30 d and 90 d 40 % each) and so are priorities (critical
5 %, high 15 %, normal 70 %, low 10 %). Slots are due evenly over time, as they are in a fleet that
was enrolled evenly, and each one is due ``late`` earlier: so much time was renewal stopped. One in
a hundred has an agent that did not answer, and is due once more within six hours. Certificates
are no certificates: their octets are the same digits, of the length of one for a P-256 key.
"""

from __future__ import annotations

import datetime as dt

import asyncpg

_FLEET = """
with named as (
    select n, md5('slot' || n)::uuid as slot_id, encode(sha256(('c' || n)::bytea), 'hex') as print,
        interval '1 day' * (array[1, 7, 7, 7, 30, 30, 30, 30, 30, 30, 30, 30, 90, 90, 90, 90, 90,
            90, 90, 90])[1 + n % 20] as lifetime,
        (array[0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3])[1 + n / 20 % 20]
            as priority,
        n % 100 = 99 as silent, random() as draw, random() as age
    from generate_series($1::bigint, $2::bigint) n
), aged as (
    select *, now() + case when silent then age * lifetime * -0.28
        else age * lifetime * (2.0 / 3 - 0.05 * draw) - $3::interval end as due_at
    from named
), made as (
    select *, due_at - lifetime * (2.0 / 3 - 0.05 * draw) as issued_at,
        due_at + lifetime * (1.0 / 3 + 0.05 * draw) as not_after from aged
), slot as (
    insert into renewal.renewal_slot (slot_id, tenant, service, profile, label, issuer_id, mode,
        priority, reaction_time_s, overlap_s, spread, rules_at, active_id, generation, not_before,
        not_after, due_at, next_attempt_at, check_at, state, attempts, fence, announced_fence)
    select slot_id, 'clinic', 'service-' || n % 5000, 'service-mtls', 'devices', 'issuing',
        'agent', priority, 3600, 3600, 0.05, issued_at, print, 1, issued_at, not_after, due_at,
        case when silent then greatest(due_at, now() + age * interval '6 hours') else due_at end,
        not_after, 'idle', case when silent then 3 else 0 end, case when silent then 3 else 0 end,
        case when silent then 3 else 0 end
    from made
)
insert into renewal.certificate (issuance_id, slot_id, serial, fingerprint_sha256, spki_sha256,
    not_before, not_after, issued_at, certificate, generation, role, state, correlation_id)
select print, slot_id, lpad(to_hex(n), 36, '0'), print, print, issued_at, not_after, issued_at,
    decode(repeat(md5(n::text), 40), 'hex'), 1, 'active', 'active', 'fleet-' || n
from made
"""


async def write_slots(
    connection: asyncpg.Connection, first: int, last: int, *, late: dt.timedelta
) -> None:
    """Write the slots with these numbers; renewal was stopped for as long as ``late``."""
    await connection.execute(_FLEET, first, last, late)
