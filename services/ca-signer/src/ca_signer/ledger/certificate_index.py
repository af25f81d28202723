"""The directory: what certificates are searched by, apart from the rows that issue them.

ca_signer.operators.verbs.certificates
The issuance rows are wide, updated three times, and have the indexes of the issuance cycle; a
search wants others. So a narrow row per certificate, and one per name, are entered together with
``announced_at``: in groups, off the way of the request, and exactly once, as the sweeper repeats
what a crash left. A page is found by one index, in the order of that index: by name, by expiry,
else newest first (docs/adr/0036).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg

from estcore.errors import MalformedRequest
from estcore.runtime.database import Connection

State = Literal["good", "expired", "revoked", "held"]
TIMEOUT_MS = 2_000
_HIGHEST = "\U0010ffff"
_NAME_LENGTH = 400
_LEAST_PATTERN = 3

_ENTER = r"""with marked as (
  update issuance set announced_at = now() where issuance_id = any($1::uuid[])
  returning issuance_id, issuer_id, tenant, service, profile, slot_id, subject,
    san, not_after, issued_at, revoked_at, state, context),
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


@dataclass(frozen=True)
class Query:
    """What to look for; all conditions hold together. Times are aware."""

    name: str | None = None
    serial_number: bytes | None = None
    issuer_id: str | None = None
    profile: str | None = None
    tenant: str | None = None
    service: str | None = None
    team: str | None = None
    cluster: str | None = None
    state: State | None = None
    expires_after: dt.datetime | None = None
    expires_before: dt.datetime | None = None
    after: str | None = None
    limit: int = 50


@dataclass
class _Statement:
    """A select that grows: conditions and their values, in step."""

    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def value(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def where(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition.format(*map(self.value, values)))


async def search(
    connection: Connection, query: Query, columns: str
) -> tuple[list[asyncpg.Record], str | None]:
    """Return a page of issuance rows with ``columns``, and the cursor of the next one.

    Raises:
        MalformedRequest: a pattern that no index can answer, or a cursor of another search.
        asyncpg.QueryCanceledError: found too little in ``TIMEOUT_MS``.
    """
    sql, values, order = statement(query, columns)
    await connection.execute(f"set local statement_timeout = {TIMEOUT_MS}")
    rows = await connection.fetch(sql, *values)
    await connection.execute("set local statement_timeout to default")
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], _cursor(order, last)


def statement(query: Query, columns: str) -> tuple[str, list[Any], str]:
    """Return the select for one page and a row more, its values, and the name of its order.

    Raises:
        MalformedRequest: as ``search``.
    """
    made = _Statement()
    source, order, name_column = "certificate c", "newest", None
    if query.name is not None:
        source = "certificate_name n join certificate c using (no)"
        order, name_column = _by_name(made, query.name.lower())
    elif query.expires_after is not None or query.expires_before is not None:
        order = "expiry"
    for condition, value in _plain(query):
        made.where(condition, value)
    if query.state is not None:
        made.where(_STATES[query.state])
    keys = {
        "newest": ("c.no", "desc"),
        "exact": ("c.no", "desc"),
        "expiry": ("c.not_after, c.no", "asc"),
        "name": (f"{name_column}, n.no", "asc"),
    }[order]
    if query.after is not None:
        _continue(made, query.after, order, name_column)
    direction = " desc" if keys[1] == "desc" else ""
    where = " and ".join(made.conditions) or "true"
    limit = made.value(query.limit + 1)
    shown = f"{name_column} as name_key" if order == "name" else "null as name_key"
    inner = (
        f"select c.no, c.issuance_id, c.not_after as expiry_key, {shown} "  # noqa: S608 - ours
        f"from {source} where {where} order by {keys[0]}{direction} limit {limit}"
    )
    outer = {"newest": "f.no desc", "exact": "f.no desc", "expiry": "f.expiry_key, f.no"}
    final = outer.get(order, "f.name_key, f.no")
    sql = (
        f"select {columns}, f.no, f.expiry_key, f.name_key from ({inner}) f "  # noqa: S608 - ours
        f"join issuance i using (issuance_id) order by {final}"
    )
    return sql, made.values, order


_STATES: dict[State, str] = {
    "good": "c.revoked_at is null and c.not_after > now()",
    "expired": "c.not_after <= now()",
    "revoked": "c.revoked_at is not null",
    "held": "c.revoked_at is not null and exists (select 1 from issuance h "
    "where h.issuance_id = c.issuance_id and h.revocation_reason = 'certificateHold')",
}


def _plain(query: Query) -> Iterator[tuple[str, Any]]:
    conditions = (
        (
            "c.issuance_id in (select issuance_id from issuance where serial_number = {})",
            query.serial_number,
        ),
        ("c.issuer_id = {}", query.issuer_id),
        ("c.profile = {}", query.profile),
        ("c.tenant = {}", query.tenant),
        ("c.service = {}", query.service),
        ("c.team = {}", query.team),
        ("c.cluster = {}", query.cluster),
        ("c.not_after >= {}", query.expires_after),
        ("c.not_after < {}", query.expires_before),
    )
    return ((condition, value) for condition, value in conditions if value is not None)


def _by_name(made: _Statement, pattern: str) -> tuple[str, str]:
    """Add the condition for ``web.test``, ``web*`` or ``*.test``; returns order and column."""
    plain = pattern.strip("*")
    if "*" not in pattern:
        made.where("n.name = {}", pattern[:_NAME_LENGTH])
        return "exact", "n.name"
    if "*" in plain or pattern.count("*") > 1 or len(plain) < _LEAST_PATTERN:
        raise MalformedRequest(
            f"a name pattern has one *, first or last, and {_LEAST_PATTERN} characters besides",
            code="command.arguments",
        )
    column = "n.name"
    if pattern.startswith("*"):
        column, plain = "reverse(n.name)", plain[::-1]
    made.where(f"{column} >= {{}} and {column} < {{}}", plain, plain + _HIGHEST)
    return "name", column


def _cursor(order: str, last: asyncpg.Record) -> str:
    key: list[Any] = [order, last["no"]]
    if order == "expiry":
        key.append(last["expiry_key"].isoformat())
    if order == "name":
        key.append(last["name_key"])
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _continue(made: _Statement, cursor: str, order: str, name_column: str | None) -> None:
    wrong = MalformedRequest("this cursor is not of this search", code="command.arguments")
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        was, no, *rest = found
        number = int(no)
        moment = dt.datetime.fromisoformat(rest[0]) if order == "expiry" else None
        name = str(rest[0]) if order == "name" else None
    except (ValueError, TypeError, IndexError, binascii.Error) as exc:
        raise wrong from exc
    if was != order:
        raise wrong
    if moment is not None:
        made.where("(c.not_after, c.no) > ({}, {})", moment, number)
    elif name is not None:
        made.where(f"({name_column}, n.no) > ({{}}, {{}})", name, number)
    else:
        made.where("c.no < {}", number)
