"""Tables filled with copies of one real enrollment, each with identifiers of its own.

Identifiers are as random, or as ordered in time, as the suite's: that decides how many pages of
an index an enrollment touches. The copies are forty days old, far from their renewal, and
announced, so no job of a service has anything to do for them. Of audit, only the tables that a
new record is compared with are filled, not the log itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

_CHUNK = 50_000
_HASH = "sha256(('{0}' || n)::bytea)"
_HEX = "encode(sha256(('{0}' || n)::bytea), 'hex')"
_TIME = "decode(lpad(to_hex(n), 12, '0'), 'hex')"
_SLOT = "md5('slot' || n)::uuid"
_ISSUED = "now() - interval '40 days' + n * interval '1 second' / 10"


def _ordered(kind: str) -> str:
    """Return SQL for a UUID that grows with ``n`` like those of version 7, and is old."""
    return f"('01900000-0000-7' || '{kind}00-8000-' || lpad(to_hex(n), 12, '0'))::uuid"


@dataclass(frozen=True)
class Copied:
    """A table, the row that is copied and the columns that differ in each copy."""

    table: str
    template: str
    columns: dict[str, str]
    left_out: tuple[str, ...] = ()


_ISSUANCE_ID = _ordered("1")
_TEMPLATE_ID = "(select issuance_id from ca_signer.issuance where subject like '%bench-client%')"
_SLOT_ID = "(select slot_id from ca_signer.issuance where subject like '%bench-client%')"

COPIES = (
    Copied(
        "ca_signer.enrollment",
        f"issuance_id = {_TEMPLATE_ID}",
        {
            "enrollment_id": _HASH.format("enrollment"),
            "issuance_id": _ISSUANCE_ID,
            "created_at": _ISSUED,
        },
    ),
    Copied(
        "ca_signer.issuance",
        f"issuance_id = {_TEMPLATE_ID}",
        {
            "issuance_id": _ISSUANCE_ID,
            "enrollment_id": _HASH.format("enrollment"),
            "request_id": _ordered("2"),
            "serial_number": f"'\\x01'::bytea || {_TIME} || substr(sha256(('serial' || n)::bytea), 1, 11)",
            "certificate_sha256": _HASH.format("certificate"),
            "spki_sha256": _HASH.format("key"),
            "slot_id": _SLOT,
            "subject": "'CN=old-' || n",
            "created_at": _ISSUED,
            "issued_at": _ISSUED,
        },
    ),
    Copied(
        "ca_signer.fingerprint",
        f"issuance_id = {_TEMPLATE_ID}",
        {
            "certificate_sha256": _HASH.format("certificate"),
            "issuance_id": _ISSUANCE_ID,
        },
    ),
    Copied(
        "ca_signer.key_binding",
        "spki_sha256 = (select spki_sha256 from ca_signer.issuance "
        "where subject like '%bench-client%')",
        {"spki_sha256": _HASH.format("key")},
    ),
    Copied(
        "ca_signer.certificate",
        f"issuance_id = {_TEMPLATE_ID}",
        {"issuance_id": _ISSUANCE_ID, "slot_id": _SLOT},
        left_out=("no",),
    ),
    Copied(
        "renewal.certificate",
        f"issuance_id = {_TEMPLATE_ID}::text",
        {
            "issuance_id": f"{_ISSUANCE_ID}::text",
            "slot_id": _SLOT,
            "serial": "substr(" + _HEX.format("serial") + ", 1, 32)",
            "fingerprint_sha256": _HEX.format("certificate"),
            "spki_sha256": _HEX.format("key"),
            "issued_at": _ISSUED,
            "changed_at": _ISSUED,
        },
    ),
    Copied(
        "renewal.renewal_slot",
        f"slot_id = {_SLOT_ID}",
        {
            "slot_id": _SLOT,
            "active_id": f"{_ISSUANCE_ID}::text",
            "due_at": "src.due_at + n * interval '1 second' / 10",
            "check_at": "src.check_at + n * interval '1 second' / 10",
            "next_attempt_at": "src.next_attempt_at + n * interval '1 second' / 10",
        },
    ),
    Copied(
        "audit.issued",
        f"issuance_id = {_TEMPLATE_ID}::text",
        {"issuance_id": f"{_ISSUANCE_ID}::text", "issued_at": _ISSUED},
    ),
    Copied(
        "audit.seen",
        "record_id = (select max(record_id::text)::uuid from audit.seen)",
        {"record_id": _ordered("3"), "log_index": "0"},
    ),
)
NAMES_TABLE = "ca_signer.certificate_name"
_NAMES = f"""insert into {NAMES_TABLE} (name, no)
select 'old-' || n || '.clinic.example', no from generate_series($1::bigint, $2::bigint) n
join ca_signer.certificate on issuance_id = {_ISSUANCE_ID}"""  # noqa: S608 - constants


async def fill(
    connection: asyncpg.Connection, rows: int, progress: Callable[[str], object]
) -> None:
    """Write that many copies into every table, then vacuum and write a checkpoint.

    Raises:
        RuntimeError: the enrollment to copy has not arrived everywhere within a minute.
    """
    await _until_everywhere(connection)
    for first in range(1, rows + 1, _CHUNK):
        last = min(first + _CHUNK - 1, rows)
        async with connection.transaction():
            await connection.execute("set local synchronous_commit = off")
            for copied in COPIES:
                await connection.execute(await _statement(connection, copied), first, last)
            await connection.execute(_NAMES, first, last)
        progress(f"{last:,} of {rows:,} rows")
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")


async def _until_everywhere(connection: asyncpg.Connection) -> None:
    missing: list[str] = []
    for _ in range(60):
        missing = [c.table for c in COPIES if not await _has_template(connection, c)]
        if not missing:
            return
        await asyncio.sleep(1)
    raise RuntimeError(f"the first certificate is not in {', '.join(missing)}")


async def _has_template(connection: asyncpg.Connection, copied: Copied) -> bool:
    sql = f"select true from {copied.table} where {copied.template}"  # noqa: S608 - constants
    return bool(await connection.fetchval(sql))


async def _statement(connection: asyncpg.Connection, copied: Copied) -> str:
    rows = await connection.fetch(
        "select attname from pg_attribute where attrelid = $1::regclass and attnum > 0 "
        "and not attisdropped order by attnum",
        copied.table,
    )
    names = [row["attname"] for row in rows if row["attname"] not in copied.left_out]
    unknown = copied.columns.keys() - set(names)
    if unknown:
        raise RuntimeError(f"{copied.table} has no {', '.join(sorted(unknown))}")
    values = ", ".join(copied.columns.get(name, f'src."{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    return (
        f"insert into {copied.table} ({columns}) select {values} "  # noqa: S608 - constants
        f"from (select * from {copied.table} where {copied.template} limit 1) src, "
        "generate_series($1::bigint, $2::bigint) n"
    )
