"""Orders to purge a month: proposed by one operator, confirmed by another, both in the log itself.

An order is no row of a table. Its proposal and its confirmation are records of ca-signer, which
verified both operators' signatures; the id is that of the proposal's command. Both must be under a
signed checkpoint, so a record that was only written into the database orders nothing.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from audit import proofs
from audit.search import search
from estcore.errors import Conflict
from estcore.messages.audit_queries import AuditSearch
from estcore.runtime.database import Connection
from estcore.tlog.checkpoint import VerifierKey

GOOD_FOR = dt.timedelta(days=7)
_PROPOSE, _CONFIRM = "operator.audit-purge-propose", "operator.audit-purge-confirm"
_NO_ORDER = "retention.no_order"


@dataclass(frozen=True)
class Order:
    """A confirmed order: which month, how many records, and the two operators."""

    id: str
    month: str
    records: int
    proposed_by: str
    confirmed_by: str


async def proposal(
    connection: Connection, order_id: str, month: str, now: dt.datetime
) -> dict[str, Any]:
    """Return the row of a proposal, with the record.

    Raises:
        Conflict: the log has none of this id and month, not yet, or one that is too old.
    """
    query = AuditSearch(
        correlation_id=order_id,
        action=_PROPOSE,
        outcome="success",
        producer="ca-signer",
        full=True,
    )
    for row in await _rows(connection, query):
        fact = row["record"]
        if _details(fact).get("month") == month and _moment(fact) >= now - GOOD_FOR:
            return row
    raise Conflict(
        f"no proposal {order_id} to purge {month} of the last week is on record, or not yet",
        code=_NO_ORDER,
    )


async def confirmed(
    connection: Connection, order_id: str, month: str, now: dt.datetime, key: VerifierKey
) -> Order:
    """Return an order that a second operator confirmed; ``key`` is that of the checkpoints.

    Raises:
        Conflict: it is not proposed, not confirmed by a different operator, or no checkpoint
            covers its records yet.
        AuditChainBroken: its records are not those that were signed.
    """
    proposed = await proposal(connection, order_id, month, now)
    query = AuditSearch(
        action=_CONFIRM,
        outcome="success",
        producer="ca-signer",
        since=now - GOOD_FOR,
        full=True,
    )
    first = _principal(proposed["record"])
    for row in await _rows(connection, query):
        fact = row["record"]
        details, second = _details(fact), _principal(fact)
        same = details.get("id") == order_id and details.get("month") == month
        records = details.get("records")
        if same and second not in {first, ""} and isinstance(records, int):
            for one in (proposed, row):
                (await proofs.inclusion(connection, one["log_index"])).verify(key)
            return Order(order_id, month, records, first, second)
    raise Conflict(
        f"no other operator than {first} has confirmed {order_id}", code="retention.dual"
    )


async def _rows(connection: Connection, query: AuditSearch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while True:
        page = await search(connection, query)
        rows += page.rows
        if page.next is None:
            return rows
        query = query.model_copy(update={"before": page.next})


def _details(fact: dict[str, Any]) -> dict[str, Any]:
    return fact.get("details") or {}


def _principal(fact: dict[str, Any]) -> str:
    return str((fact.get("actor") or {}).get("subject") or "")


def _moment(fact: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(fact["occurred_at"])
