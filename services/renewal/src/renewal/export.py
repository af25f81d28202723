"""What operators read: all certificates as JSON lines, and the slots."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from estcore.errors import ConfigurationError
from estcore.runtime.database import Database

_PAGE = 5000
_CERTIFICATES = """
select issuance_id, serial, fingerprint_sha256, slot_id, state from certificate
where issuance_id > $1 order by issuance_id limit $2
"""
_SLOTS = """
select slot_id, tenant, service, profile, label, state, generation, due_at, not_after,
       attempts, last_error_class
from renewal_slot where slot_id > $1 order by slot_id limit $2
"""
_LOWEST_SLOT = "00000000-0000-0000-0000-000000000000"


async def export_certificates(database: Database, path: Path) -> int:
    """Write one JSON object a line for every certificate, by issuance id; returns how many.

    Raises:
        ConfigurationError: the file cannot be written.
        LedgerUnavailable: the database is away.
    """
    try:
        with path.open("w", encoding="utf-8") as out:
            return await _pages(database, out, _CERTIFICATES, "issuance_id", "")
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc


async def list_slots(database: Database, out: TextIO = sys.stdout) -> int:
    """Write one JSON object a line for every slot; returns how many.

    Raises:
        LedgerUnavailable: the database is away.
    """
    return await _pages(database, out, _SLOTS, "slot_id", _LOWEST_SLOT)


async def _pages(database: Database, out: TextIO, query: str, key: str, lowest: str) -> int:
    after: Any = lowest
    written = 0
    while True:
        async with database.connection() as connection:
            rows = await connection.fetch(query, after, _PAGE)
        for row in rows:
            out.write(json.dumps(dict(row), default=_text) + "\n")
        written += len(rows)
        if len(rows) < _PAGE:
            return written
        after = rows[-1][key]


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
