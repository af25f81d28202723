"""The log in the hands of its one writer: next index, Merkle frontier, hash chain.

An append computes the rows and the head after them, and the database takes both or neither.
Only then does the state here move. Duplicates are rare, so they are looked for when the unique
index has refused a batch, not before.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from audit import store
from audit.packed_leaf import pack
from audit.record_decoder import Entry
from estcore.clock import Clock
from estcore.errors import LedgerUnavailable
from estcore.runtime.database import Connection
from estcore.tlog.export import chain_hash
from estcore.tlog.tree import Frontier, leaf_hash


@dataclass(frozen=True)
class Appended:
    """What became of a batch.

    ``conflicts`` were left out because a different fact is logged under their id.
    """

    entries: tuple[Entry, ...]
    duplicates: int
    conflicts: tuple[Entry, ...] = ()


class Chain:
    """The end of the log, in step with the database as long as this process is its writer."""

    def __init__(self, head: store.Head, clock: Clock) -> None:
        self._clock = clock
        self._frontier = Frontier.from_bytes(head.size, head.frontier)
        self._last_hash = head.last_hash
        self._recorded_at = head.recorded_at

    @classmethod
    async def load(cls, connection: Connection, clock: Clock) -> Chain:
        """Return the chain as the database has it."""
        return cls(await store.load_head(connection), clock)

    @property
    def size(self) -> int:
        """Records in the log."""
        return self._frontier.size

    @property
    def root(self) -> bytes:
        """Root of the tree over all of them."""
        return self._frontier.root()

    async def append(self, connection: Connection, entries: Iterable[Entry]) -> Appended:
        """Append what is not in the log yet, in order.

        Raises:
            LedgerUnavailable: the head is not where this writer left it; load it anew.
        """
        in_order = list(entries)
        first: dict[str, Entry] = {}
        conflicts: list[Entry] = []
        for entry in in_order:
            if first.setdefault(entry.record_id, entry).fact != entry.fact:
                conflicts.append(entry)
        fresh = list(first.values())
        while fresh:
            try:
                await self._write(connection, fresh)
                break
            except asyncpg.UniqueViolationError:
                logged = await store.logged(connection, [e.record_id for e in fresh])
                if not logged:
                    raise
                known = {name: fact for name, fact in logged.items() if fact is not None}
                conflicts += [e for e in fresh if known.get(e.record_id, e.fact) != e.fact]
                fresh = [e for e in fresh if e.record_id not in logged]
        return Appended(tuple(fresh), len(in_order) - len(fresh), tuple(conflicts))

    async def takes(self, connection: Connection, entry: Entry) -> bool:
        """Return whether the log takes this entry, which is not kept.

        It distinguishes a record that cannot be stored from a database that stores none.
        """
        copy = Chain(
            store.Head(self.size, self._frontier.to_bytes(), self._last_hash, self._recorded_at),
            self._clock,
        )
        transaction = connection.transaction()
        await transaction.start()
        try:
            await copy.append(connection, [entry])
        except asyncpg.PostgresError:
            return False
        finally:
            await transaction.rollback()
        return True

    async def _write(self, connection: Connection, entries: Sequence[Entry]) -> None:
        recorded_at = max(self._clock.now(), self._recorded_at)
        moment = spell(recorded_at)
        frontier, chain = self._frontier.copy(), self._last_hash
        leaves, leaf_hashes, prev_hashes = [], [], []
        for index, entry in enumerate(entries, frontier.size):
            leaf = leaf_text(index, moment, entry.text, entry.topic)
            hashed = leaf_hash(leaf.encode())
            leaves.append(leaf)
            leaf_hashes.append(hashed)
            prev_hashes.append(chain)
            frontier.append(hashed)
            chain = chain_hash(chain, hashed)
        head = store.Head(frontier.size, frontier.to_bytes(), chain, recorded_at)
        issued = [pair for entry in entries if (pair := entry.issuance) is not None]
        columns = _columns(entries, [pack(leaf) for leaf in leaves], leaf_hashes, prev_hashes)
        if not await store.append(connection, self.size, head, columns, issued):
            raise LedgerUnavailable("another writer moved the head of the log")
        self._frontier, self._last_hash, self._recorded_at = frontier, chain, recorded_at


def leaf_text(log_index: int, recorded_at: str, record: str, topic: str) -> str:
    """Return the canonical JSON of a leaf from the canonical JSON of its record."""
    moment = f'"recorded_at":"{recorded_at}","topic":"{topic}"'
    return f'{{"log_index":{log_index},"record":{record},{moment}}}'


def spell(moment: dt.datetime) -> str:
    """Return the one spelling of a time in leaves: UTC, six digits, Z."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _columns(
    entries: Sequence[Entry],
    packed_leaves: Sequence[bytes],
    leaf_hashes: Sequence[bytes],
    prev_hashes: Sequence[bytes],
) -> store.Columns:
    records = [entry.record for entry in entries]
    producers = [record.producer for record in records]
    return store.Columns(
        record_id=[entry.record_id for entry in entries],
        occurred_at=[entry.occurred_at.isoformat() for entry in entries],
        correlation_id=[record.correlation_id for record in records],
        action=[record.action for record in records],
        phase=[record.phase for record in records],
        outcome=[record.outcome for record in records],
        service=[producer.service for producer in producers],
        instance=[producer.instance for producer in producers],
        producer_seq=[
            "" if record.producer_seq is None else str(record.producer_seq) for record in records
        ],
        packed_leaf=packed_leaves,
        leaf_hash=leaf_hashes,
        prev_hash=prev_hashes,
        boot_id=[producer.boot_id for producer in producers],
    )
