"""What operators read: all certificates as JSON lines, and the slots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Select, select

from estcore.runtime import statements
from estcore.runtime.database import Database
from estcore.runtime.terminal import export_file, write_json
from renewal.tables import certificate, renewal_slot

_PAGE = 5000
_CERTIFICATES = select(
    certificate.c.issuance_id,
    certificate.c.serial,
    certificate.c.fingerprint_sha256,
    certificate.c.slot_id,
    certificate.c.state,
)
_SLOTS = select(
    renewal_slot.c.slot_id,
    renewal_slot.c.tenant,
    renewal_slot.c.service,
    renewal_slot.c.profile,
    renewal_slot.c.label,
    renewal_slot.c.state,
    renewal_slot.c.generation,
    renewal_slot.c.due_at,
    renewal_slot.c.not_after,
    renewal_slot.c.attempts,
    renewal_slot.c.last_error_class,
)
_LOWEST_SLOT = "00000000-0000-0000-0000-000000000000"


async def export_certificates(database: Database, path: Path) -> int:
    """Write one JSON object a line for every certificate, by issuance id; returns how many.

    Raises:
        ConfigurationError: the file cannot be written.
        LedgerUnavailable: the database is unavailable.
    """
    with export_file(path) as file:

        def write(row: Mapping[str, Any]) -> None:
            file.write((json.dumps(row) + "\n").encode())

        return await _pages(database, write, _CERTIFICATES, certificate.c.issuance_id, "")


async def list_slots(database: Database) -> int:
    """Write one JSON object a line for every slot to standard output; returns how many.

    Raises:
        LedgerUnavailable: the database is unavailable.
    """
    return await _pages(database, write_json, _SLOTS, renewal_slot.c.slot_id, _LOWEST_SLOT)


async def _pages(
    database: Database,
    write: Callable[[Mapping[str, Any]], None],
    query: Select[Any],
    key: Column[Any],
    lowest: str,
) -> int:
    after: Any = lowest
    written = 0
    while True:
        async with database.connection() as connection:
            page = query.where(key > after).order_by(key).limit(_PAGE)
            rows = await statements.fetch(connection, page)
        for row in rows:
            write({name: _text(value) for name, value in dict(row).items()})
        written += len(rows)
        if len(rows) < _PAGE:
            return written
        after = rows[-1][key.name]


def _text(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, (str, int)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
