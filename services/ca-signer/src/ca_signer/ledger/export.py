"""``ca-signer export``: the ledger as JSON lines, for ``estctl audit verify --cross``.

First the issuances, then the commands of operators that were carried out or refused.

Submissions to upstream CAs without a certificate are in it too, without a serial number: their
intents are on record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import CompoundSelect, and_, case, exists, null, select, union_all

from ca_signer.ledger.tables import command, issuance, submission, unannounced
from ca_signer.model import OPEN_SUBMISSION_STATES
from estcore import ids
from estcore.runtime import statements
from estcore.runtime.database import Database
from estcore.runtime.terminal import export_file

_COMMANDS = select(
    command.c.command_id, command.c.verb, command.c.operator, command.c.announced_at
).order_by(command.c.created_at)


def _rows() -> CompoundSelect[Any]:
    """Return issuances, and submissions that have no certificate, as issuances."""
    row, sent = issuance.c, submission.c
    state = case((sent.state.in_(OPEN_SUBMISSION_STATES), "intended"), else_="abandoned")
    waiting = exists().where(unannounced.c.issuance_id == row.issuance_id)
    issued = select(
        row.issuance_id,
        row.request_id,
        row.enrollment_id,
        row.state,
        row.serial_number,
        row.tenant,
        row.service,
        row.profile,
        row.slot_id,
        row.not_after,
        row.certificate_sha256,
        row.issued_at,
        and_(row.state != "intended", ~waiting).label("audited"),
        row.revoked_at,
    )
    submitted = select(
        sent.issuance_id,
        sent.request_id,
        sent.enrollment_id,
        state,
        null(),
        sent.tenant,
        sent.service,
        sent.profile,
        sent.slot_id,
        sent.not_after,
        null(),
        null(),
        sent.announced_at.is_not(None),
        null(),
    ).where(sent.state != "issued")
    return union_all(issued, submitted).order_by("issuance_id")


async def export(database: Database, out: Path) -> int:
    """Write one object per issuance; returns how many.

    Raises:
        LedgerUnavailable: the database is unavailable.
    """
    count = 0
    with export_file(out) as file:
        async with database.connection() as connection, connection.transaction():
            async for row in statements.stream(connection, _rows()):
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
                    "audited": row["audited"],
                    "revoked": row["revoked_at"] is not None,
                }
                file.write((json.dumps(line) + "\n").encode())
                count += 1
            async for row in statements.stream(connection, _COMMANDS):
                given = {
                    "command_id": str(row["command_id"]),
                    "verb": row["verb"],
                    "operator": row["operator"],
                    "audited": row["announced_at"] is not None,
                }
                file.write((json.dumps(given) + "\n").encode())
    return count
