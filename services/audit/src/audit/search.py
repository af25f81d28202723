"""Searches of the audit log: by terms and time, newest first, a page at a time.

1. Records behind the index are read from the log itself.
2. Of every term the newest postings are read. The term whose postings reach back farthest for
   their number is the rarest: its chunks are looked up for the other terms.
3. Records that have all terms by the index are read, and compared with the terms themselves.

Each step reads a bounded number of rows, so that no search takes the database for long. A page
may therefore have fewer rows than wanted, or none, and a next one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from audit import store, term_store
from audit.term_store import CHUNK_SPAN, Posting, Row, places_of
from estcore.errors import ESTSuiteError
from estcore.messages.audit_queries import MAX_PAGE, AuditSearch, AuditTail, Conditions
from estcore.runtime.database import Connection
from estcore.tlog.leaf import read_leaf
from estcore.tlog.terms import Kind, Term, matching_facts, term

_UNINDEXED = 500
_POSTINGS = (16, 128)
"""How many chunks are read at first, and if they have too few records."""
_RECORDS = 400
_LEAST, _FETCHED = 20, 100
_FIRST = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
_LAST = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)


@dataclass
class Page:
    """Facts, newest first. ``next`` is the ``before`` of the next page, None at the end."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    next: int | None = None


@dataclass(frozen=True)
class _Chunk:
    """A chunk of the rarest term; ``others`` has the places of each other term, if it has all."""

    posting: Posting
    others: tuple[bytes, ...] | None

    def together(self) -> list[int]:
        """Return the records that have every term, newest first."""
        if self.others is None:
            return []
        places = places_of(self.posting.places)
        for other in self.others:
            places &= places_of(other)
        return [self.posting.chunk + place for place in sorted(places, reverse=True)]


def terms_of(query: Conditions) -> list[Term]:
    """Return the terms that one fact of a record must have."""
    owner: Kind = "owner" if "/" in (query.owner or "") else "tenant"
    wanted: list[tuple[Kind, str | None]] = [
        ("correlation", query.correlation_id),
        ("serial", query.serial),
        ("name", query.name),
        ("principal", query.principal),
        (owner, query.owner),
        ("action", query.action),
        ("outcome", query.outcome),
        ("phase", query.phase),
        ("producer", query.producer),
    ]
    return [term(kind, value) for kind, value in wanted if value is not None]


async def search(connection: Connection, query: AuditSearch) -> Page:
    """Return one page."""
    return await _Search(connection, query).run()


async def follow(connection: Connection, query: AuditTail) -> tuple[list[dict[str, Any]], int]:
    """Return facts from a record on, oldest first, and where the next ones begin."""
    head = await store.load_head(connection)
    if query.after is None or query.after >= head.size:
        return [], head.size
    since = await term_store.time_before(connection, query.after) or _FIRST
    rows = await term_store.records_after(connection, query.after, since, MAX_PAGE)
    terms = terms_of(query)
    found = [row for _, _, text in rows for row in _summaries(text, terms, full=False)]
    return found, rows[-1][0] + 1 if rows else query.after


class _Search:
    def __init__(self, connection: Connection, query: AuditSearch) -> None:
        self.connection, self.query = connection, query
        self.terms = terms_of(query)
        self.since = max(query.since or _FIRST, _FIRST)
        self.until = min(query.until or _LAST, _LAST)
        self.page = Page()

    async def run(self) -> Page:
        indexed, newest = await term_store.indexed(self.connection)
        before = self.query.before
        if before is None:
            before = (await store.load_head(self.connection)).size
        if before > indexed and (newest is None or newest < self.until):
            times = self.since, self.until
            rows = await term_store.records_before(
                self.connection, (indexed, before), times, _UNINDEXED
            )
            if self._take(rows) or self._more(rows, _UNINDEXED):
                return self.page
        before = min(before, indexed)
        if self.query.until is not None:
            before = min(before, await term_store.index_until(self.connection, self.until))
        await (self._by_terms(before) if self.terms else self._by_time(before))
        return self.page

    async def _by_time(self, before: int) -> None:
        first = 0
        if self.query.since is not None:
            # A chunk begins before the records in it: the one before may have some.
            first = await term_store.index_until(self.connection, self.since - CHUNK_SPAN)
        times = self.since, self.until
        rows = await term_store.records_before(
            self.connection, (first, before), times, self.query.limit
        )
        if not self._take(rows):
            self._more(rows, self.query.limit)

    async def _by_terms(self, before: int) -> None:
        examined = 0
        for limit in _POSTINGS:
            found, exhausted = await self._candidates(before, limit)
            for part, since, until in self._parts(found, before):
                rows = await term_store.records_at(self.connection, part, since, until)
                if self._take(rows):
                    return
                examined += len(part)
                if examined >= _RECORDS:
                    self.page.next = part[-1] or None
                    return
            if exhausted:
                return
            before = found[-1].posting.chunk
        self.page.next = before or None

    async def _candidates(self, before: int, limit: int) -> tuple[list[_Chunk], bool]:
        """Return the next chunks, with what they have of the other terms.

        The second value says that no further chunk has any.
        """
        high = self.until
        if (moment := await term_store.time_before(self.connection, before)) is not None:
            high = min(high, moment)
        times = self.since - CHUNK_SPAN, high
        found = {
            wanted: await term_store.postings(self.connection, wanted.key, times, before, limit)
            for wanted in self.terms
        }
        exhausted = [wanted for wanted, rows in found.items() if len(rows) < limit]
        if exhausted:
            rarest = min(exhausted, key=lambda wanted: len(found[wanted]))
        else:
            rarest = min(self.terms, key=lambda wanted: found[wanted][-1].chunk)
        chunks = found[rarest]
        common = {posting.chunk: posting.places for posting in chunks}
        others: list[dict[int, bytes]] = []
        for other in self.terms:
            if other is not rarest and common:
                wanted_chunks = [posting for posting in chunks if posting.chunk in common]
                at = await term_store.postings_at(self.connection, other.key, wanted_chunks)
                common = {chunk: places for chunk, places in common.items() if chunk in at}
                others.append(at)
        here = [_Chunk(p, tuple(o[p.chunk] for o in others) if p.chunk in common else None)
                for p in chunks]  # fmt: skip
        return here, bool(exhausted)

    def _parts(
        self, found: list[_Chunk], before: int
    ) -> Iterator[tuple[list[int], dt.datetime, dt.datetime]]:
        """Yield records that have every term, newest first, as many at once as the page lacks.

        With them comes a time that all were recorded at or after, and one at or before.
        """
        size = max(_LEAST, min(self.query.limit, _FETCHED))
        waiting: list[int] = []
        newest = found[0].posting.recorded_at if found else self.since
        for chunk in found:
            indexes = chunk.together()
            if indexes and not waiting:
                newest = chunk.posting.recorded_at
            waiting += [index for index in indexes if index < before]
            while len(waiting) >= size:
                yield waiting[:size], chunk.posting.recorded_at, newest + CHUNK_SPAN
                waiting = waiting[size:]
                newest = chunk.posting.recorded_at
        if waiting:
            yield waiting, found[-1].posting.recorded_at, newest + CHUNK_SPAN

    def _take(self, rows: list[Row]) -> bool:
        """Add the facts that match; returns whether the page is full."""
        for index, recorded_at, text in rows:
            if not self.since <= recorded_at < self.until:
                continue
            self.page.rows += list(_summaries(text, self.terms, full=self.query.full))
            if len(self.page.rows) >= self.query.limit:
                self.page.next = index or None
                return True
        return False

    def _more(self, rows: list[Row], limit: int) -> bool:
        """Set the next page if the rows may not be all; returns whether they may not."""
        if len(rows) < limit:
            return False
        self.page.next = rows[-1][0] or None
        return True


def _summaries(text: str, terms: list[Term], *, full: bool) -> Iterator[dict[str, Any]]:
    try:
        leaf = read_leaf(text.encode())
    except ESTSuiteError:
        return
    for fact in matching_facts(leaf["record"], terms):
        target, actor = fact.get("target") or {}, fact.get("actor") or {}
        tenant, service = target.get("tenant"), target.get("service")
        row: dict[str, Any] = {
            "log_index": leaf["log_index"],
            "recorded_at": leaf["recorded_at"],
            "occurred_at": fact["occurred_at"],
            "producer": fact["producer"]["service"],
            "action": fact["action"],
            "phase": fact["phase"],
            "outcome": fact["outcome"],
            "reason_code": fact.get("reason_code"),
            "correlation_id": fact["correlation_id"],
            "principal": actor.get("subject"),
            "owner": f"{tenant}/{service}" if tenant and service else tenant,
            "serial": target.get("serial"),
            "subject": target.get("subject"),
            "san": target.get("san"),
        }
        if full:
            about = {name: value for name, value in target.items() if name != "certificate"}
            row["record"] = {**fact, "target": about}
        yield row
