"""Search for certificates: pages in the order of one index, composed with SQLAlchemy Core.

A page is found by one index, in the order of that index: by name, by expiry, else newest first
(docs/adr/0036). ``ca_signer.ledger.certificate_index`` keeps the rows that are searched.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
from sqlalchemy import ColumnElement, Select, and_, func, null, select, tuple_

from ca_signer.ledger.tables import certificate as found_certificate
from ca_signer.ledger.tables import certificate_name, issuance
from ca_signer.ledger.tables import fingerprint as fingerprints
from estcore.errors import MalformedRequest
from estcore.runtime import statements
from estcore.runtime.database import Connection

State = Literal["good", "expired", "revoked", "held"]
Order = Literal["newest", "expiry", "name"]
TIMEOUT_MS = 2_000
COLUMNS = (
    issuance.c.issuance_id,
    issuance.c.issuer_id,
    issuance.c.serial_number,
    issuance.c.certificate_sha256,
    issuance.c.tenant,
    issuance.c.service,
    issuance.c.profile,
    issuance.c.subject,
    issuance.c.san,
    issuance.c.spki_sha256,
    issuance.c.not_before,
    issuance.c.not_after,
    issuance.c.issued_at,
    issuance.c.revoked_at,
    issuance.c.revocation_reason,
    issuance.c.certificate,
)
"""What operators see of a certificate."""
_HIGHEST = "\U0010ffff"
_NAME_LENGTH = 400
_LEAST_PATTERN = 3
Condition = ColumnElement[bool]


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


async def find(
    connection: Connection,
    *,
    serial_number: bytes | None,
    fingerprint: bytes | None,
    issuer_id: str | None,
    lock: bool,
) -> Sequence[asyncpg.Record]:
    """Return at most two issued certificates by serial number or fingerprint."""
    query = select(*COLUMNS).where(issuance.c.state == "issued").limit(2)
    if serial_number is not None:
        query = query.where(issuance.c.serial_number == serial_number)
    if fingerprint is not None:
        known = select(fingerprints.c.issuance_id).where(
            fingerprints.c.certificate_sha256 == fingerprint
        )
        query = query.where(issuance.c.issuance_id == known.scalar_subquery())
    if issuer_id is not None:
        query = query.where(issuance.c.issuer_id == issuer_id)
    if lock:
        query = query.with_for_update()
    return await statements.fetch(connection, query)


async def search(
    connection: Connection, query: Query
) -> tuple[Sequence[asyncpg.Record], str | None]:
    """Return a page of issuance rows with ``COLUMNS``, and the cursor of the next one.

    Raises:
        MalformedRequest: a pattern that no index can answer, or a cursor of another search.
        asyncpg.QueryCanceledError: found too little in ``TIMEOUT_MS``.
    """
    page, order = statement(query)
    await connection.execute(f"set local statement_timeout = {TIMEOUT_MS}")
    rows = await statements.fetch(connection, page)
    await connection.execute("set local statement_timeout to default")
    if len(rows) <= query.limit:
        return rows, None
    return rows[: query.limit], _cursor(order, rows[query.limit - 1])


def statement(query: Query) -> tuple[Select[Any], Order]:
    """Return the select for one page and a row more, and its order.

    Raises:
        MalformedRequest: as ``search``.
    """
    columns, name = found_certificate.c, None
    source: Any = found_certificate
    conditions = list(_conditions(query))
    order: Order = "newest"
    if query.name is not None:
        source = certificate_name.join(
            found_certificate, certificate_name.c.no == found_certificate.c.no
        )
        condition, name = _by_name(query.name.lower())
        conditions.append(condition)
        order = "newest" if name is None else "name"
    elif query.expires_after is not None or query.expires_before is not None:
        order = "expiry"
    if query.after is not None:
        conditions.append(_after(query.after, order, name))
    inner = (
        select(
            columns.no,
            columns.issuance_id,
            columns.not_after.label("expiry_key"),
            (null() if name is None else name).label("name_key"),
        )
        .select_from(source)
        .where(and_(True, *conditions))
        .limit(query.limit + 1)
    )
    if name is not None:
        page = inner.order_by(name, certificate_name.c.no).subquery("f")
        keys: list[ColumnElement[Any]] = [page.c.name_key, page.c.no]
    elif order == "expiry":
        page = inner.order_by(columns.not_after, columns.no).subquery("f")
        keys = [page.c.expiry_key, page.c.no]
    else:
        page = inner.order_by(columns.no.desc()).subquery("f")
        keys = [page.c.no.desc()]
    rows = (
        select(*COLUMNS, page.c.no, page.c.expiry_key, page.c.name_key)
        .select_from(page.join(issuance, issuance.c.issuance_id == page.c.issuance_id))
        .order_by(*keys)
    )
    return rows, order


def _conditions(query: Query) -> Iterator[Condition]:
    columns = found_certificate.c
    equal = {
        columns.issuer_id: query.issuer_id,
        columns.profile: query.profile,
        columns.tenant: query.tenant,
        columns.service: query.service,
        columns.team: query.team,
        columns.cluster: query.cluster,
    }
    for column, value in equal.items():
        if value is not None:
            yield column == value
    if query.serial_number is not None:
        numbered = select(issuance.c.issuance_id).where(
            issuance.c.serial_number == query.serial_number
        )
        yield columns.issuance_id.in_(numbered)
    if query.expires_after is not None:
        yield columns.not_after >= query.expires_after
    if query.expires_before is not None:
        yield columns.not_after < query.expires_before
    if query.state is not None:
        yield _state(query.state)


def _state(state: State) -> Condition:
    columns = found_certificate.c
    match state:
        case "good":
            return and_(columns.revoked_at.is_(None), columns.not_after > func.now())
        case "expired":
            return columns.not_after <= func.now()
        case "revoked":
            return columns.revoked_at.is_not(None)
        case "held":
            on_hold = select(issuance.c.issuance_id).where(
                issuance.c.issuance_id == columns.issuance_id,
                issuance.c.revocation_reason == "certificateHold",
            )
            return and_(columns.revoked_at.is_not(None), on_hold.exists())


def _by_name(pattern: str) -> tuple[Condition, ColumnElement[str] | None]:
    """Return the condition for ``web.test``, ``web*`` or ``*.test``, and what pages go by."""
    plain = pattern.strip("*")
    name = certificate_name.c.name
    if "*" not in pattern:
        return name == pattern[:_NAME_LENGTH], None
    if "*" in plain or pattern.count("*") > 1 or len(plain) < _LEAST_PATTERN:
        raise MalformedRequest(
            f"a name pattern has one *, first or last, and {_LEAST_PATTERN} characters besides",
            code="command.arguments",
        )
    key: ColumnElement[str] = name
    if pattern.startswith("*"):
        key, plain = func.reverse(name), plain[::-1]
    return and_(key >= plain, key < plain + _HIGHEST), key


def _cursor(order: Order, last: asyncpg.Record) -> str:
    key: list[Any] = [order, last["no"]]
    if order == "expiry":
        key.append(last["expiry_key"].isoformat())
    if order == "name":
        key.append(last["name_key"])
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _after(cursor: str, order: Order, name: ColumnElement[str] | None) -> Condition:
    """Return the condition for rows behind a cursor.

    Raises:
        MalformedRequest: the cursor is of another search.
    """
    wrong = MalformedRequest("this cursor is not of this search", code="command.arguments")
    columns = found_certificate.c
    try:
        was, number, *rest = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        no = int(number)
        moment = dt.datetime.fromisoformat(rest[0]) if order == "expiry" else None
        key = str(rest[0]) if order == "name" else None
    except (ValueError, TypeError, IndexError, binascii.Error) as exc:
        raise wrong from exc
    if was != order:
        raise wrong
    if moment is not None:
        return tuple_(columns.not_after, columns.no) > tuple_(moment, no)
    if key is not None:
        return tuple_(name, certificate_name.c.no) > tuple_(key, no)
    return columns.no < no
