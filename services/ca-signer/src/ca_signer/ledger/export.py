"""``ca-signer export``: the ledger as JSON lines, for ``estctl audit verify --cross``.

What another CA was asked for and has not given is in it too, without a serial number: its intent
is on record.
"""

from __future__ import annotations

import json
from pathlib import Path

from ca_signer.model import OPEN_SUBMISSIONS
from estcore import ids
from estcore.runtime.database import Database

_ROWS = f"""select issuance_id, request_id, enrollment_id, state, serial_number, tenant, service,
  profile, slot_id, not_after, certificate_sha256, issued_at, announced_at, revoked_at
from issuance
union all
select issuance_id, request_id, enrollment_id,
  case when {OPEN_SUBMISSIONS} then 'intended'
    else 'abandoned' end,
  null, tenant, service, profile, slot_id, not_after, null, null, announced_at, null
from submission where state <> 'issued'
order by 1"""  # noqa: S608 - our constant


async def export(database: Database, out: Path) -> int:
    """Write one object per issuance; returns how many.

    Raises:
        LedgerUnavailable: the database is away.
    """
    count = 0
    with out.open("w", encoding="utf-8") as file:
        async with database.connection() as connection, connection.transaction():
            async for row in connection.cursor(_ROWS, prefetch=1000):
                serial = row["serial_number"]
                line = {
                    "issuance_id": str(row["issuance_id"]),
                    "request_id": str(row["request_id"]),
                    "enrollment_id": row["enrollment_id"].hex(),
                    "state": row["state"],
                    "serial": ids.serial_hex(int.from_bytes(serial, "big")) if serial else None,
                    "tenant": row["tenant"],
                    "service": row["service"],
                    "profile": row["profile"],
                    "slot_id": str(row["slot_id"]),
                    "not_after": row["not_after"].isoformat(),
                    "certificate_sha256": (row["certificate_sha256"] or b"").hex() or None,
                    "issued_at": row["issued_at"].isoformat() if row["issued_at"] else None,
                    "audited": row["announced_at"] is not None,
                    "revoked": row["revoked_at"] is not None,
                }
                file.write(json.dumps(line) + "\n")
                count += 1
    return count
