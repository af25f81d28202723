"""A transparency log in memory, exported, for verification tests."""

from __future__ import annotations

import datetime as dt
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from estcore import ids
from estcore.tlog import canonical, export
from estcore.tlog.checkpoint import Checkpoint, VerifierKey, sign
from estcore.tlog.tree import Tree, leaf_hash

ORIGIN = "est.example.org/audit"
START = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
Record = dict[str, Any]


def record(number: int, **changes: Any) -> Record:
    value: Record = {
        "record_id": ids.record_id("test", str(number)),
        "producer": {"service": "est-frontend", "instance": "f-0", "boot_id": "b"},
        "producer_seq": number + 1,
        "occurred_at": (START + dt.timedelta(seconds=number)).isoformat(),
        "correlation_id": f"call-{number // 3}",
        "action": "auth.denied",
        "phase": "denied",
        "outcome": "failure",
        "target": {"label": "dévice"},
    }
    value.update(changes)
    return value


class MemoryLog:
    """What the audit service does, without it."""

    def __init__(self, seed: int = 1) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))
        self.vkey = VerifierKey(ORIGIN, self.key.public_key())
        self.tree = Tree()
        self.chain = export.GENESIS
        self.records: list[tuple[int, str, bytes, bytes]] = []
        self.notes: list[tuple[int, str]] = []

    def add(
        self, value: Record, *, recorded_at: dt.datetime | None = None, topic: str | None = None
    ) -> None:
        index = self.tree.size
        moment = recorded_at or START + dt.timedelta(seconds=index, milliseconds=1)
        leaf = canonical.encode(
            {
                "log_index": index,
                "recorded_at": moment.isoformat(),
                "record": value,
                "topic": topic or f"audit.issue.{value.get('producer', {}).get('service')}",
            }
        )
        hashed = leaf_hash(leaf)
        self.records.append((index, leaf.decode(), hashed, self.chain))
        self.chain = export.chain_hash(self.chain, hashed)
        self.tree.append(hashed)

    def seal(self) -> None:
        point = Checkpoint(ORIGIN, self.tree.size, self.tree.root())
        self.notes.append((self.tree.size, sign(point, ORIGIN, self.key)))

    def export(self) -> list[bytes]:
        header = export.Header(ORIGIN, str(self.vkey), len(self.records), len(self.notes))
        return [
            header.line(),
            *(export.record_line(*r) for r in self.records),
            *(export.checkpoint_line(*n) for n in self.notes),
        ]

    def part(self, correlation_id: str) -> list[bytes]:
        size, note = self.notes[-1]
        found = [r for r in self.records if f'"{correlation_id}"' in r[1]]
        header = export.Header(ORIGIN, str(self.vkey), len(found), 1, correlation_id)
        lines = [header.line()]
        for row in found:
            proof = self.tree.inclusion(row[0], size) if row[0] < size else None
            lines.append(export.record_line(*row, proof))
        return [*lines, export.checkpoint_line(size, note)]


def make_log(records: int = 0, *, seal_every: int = 3, seed: int = 1) -> MemoryLog:
    log = MemoryLog(seed)
    for number in range(records):
        log.add(record(number))
        if (number + 1) % seal_every == 0:
            log.seal()
    return log
