"""A ledger with many certificates, written by SQL: for plans and figures of searches.

The certificates are no certificates (their octets are random); everything a search looks at is
as the signer writes it, serial numbers made as the signer makes them. One in fifty is revoked, one in ten has expired, five are of one host.
"""

from __future__ import annotations

from ca_signer.ledger.issuance_rows import serial_octets
from estcore import ids
from estcore.runtime.database import Connection

_ROWS = """insert into issuance (issuance_id, enrollment_id, request_id, issuer_id, serial_number,
  state, lease_until, sign_before, certificate, certificate_sha256, tenant, service, profile,
  slot_id, subject, san, spki_sha256, not_before, not_after, context, issued_at, revoked_at,
  revocation_reason)
select gen_random_uuid(), sha256(('e' || n)::bytea), gen_random_uuid(), 'issuing',
  serial, 'issued', now(), now(),
  sha256(('c' || n)::bytea), sha256(('f' || n)::bytea), 't' || n % 20, 's' || n % 500,
  (array['service-mtls', 'device', 'workload'])[1 + n % 3], gen_random_uuid(),
  'O=Clinic,CN=host-' || n / 5, 'dns:host-' || n / 5 || '.ward-' || n % 200 ||
  '.clinic.example', sha256(('k' || n)::bytea), now() - interval '1 day',
  now() + (n % 100 - 10) * interval '1 day' + n % 86400 * interval '1 s', '{"team": "team-' ||
  n % 50 || '", "cluster": "cluster-' || n % 8 || '"}', now() - ($2 - n) * interval '1 s',
  case when n % 50 = 0 then now() end,
  case when n % 100 = 0 then 'certificateHold' when n % 50 = 0 then 'superseded' end
from (select serial, $1::bigint + ordinality as n
  from unnest($3::bytea[]) with ordinality t(serial)) made returning issuance_id"""


async def write_certificates(connection: Connection, first: int, last: int) -> list[str]:
    """Write rows number ``first`` + 1 to ``last``; returns their ids, not yet in the directory."""
    serials = [serial_octets(ids.new_serial_number()) for _ in range(last - first)]
    return [str(row["issuance_id"]) for row in await connection.fetch(_ROWS, first, last, serials)]
