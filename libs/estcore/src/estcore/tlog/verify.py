"""Offline verification of an exported log: needs the export and a public key, nothing else.

1. every line has the one spelling an export has, and the counts of the header hold
2. log_index is contiguous, the leaf hash is that of the leaf, prev_hash chains
3. every checkpoint is signed, of this origin, and has the root of its size
4. each checkpoint's tree begins with the one before it
5. producers' sequences have no gaps or repetitions, times do not run backwards
6. no intent is without its outcome for long

Not checked: who held the signing key, and records after the newest checkpoint beyond their own
hashes. A finding is data, not an exception, so that one report names every place.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from estcore.errors import AuditChainBroken, ESTSuiteError
from estcore.tlog import canonical, export, sequences
from estcore.tlog.checkpoint import SignedCheckpoint, VerifierKey, parse_signed
from estcore.tlog.cross import cross
from estcore.tlog.findings import Finding, Report
from estcore.tlog.tree import Tree, leaf_hash, verify_consistency, verify_inclusion

__all__ = ["Finding", "Options", "Report", "Verification", "cross", "verify"]


@dataclass(frozen=True)
class Options:
    """What a verification is told. ``key`` None takes the key the export names itself."""

    now: dt.datetime
    key: VerifierKey | None = None
    outcome_within: dt.timedelta = dt.timedelta(minutes=15)
    sequence_settles: dt.timedelta = dt.timedelta(minutes=2)
    clock_skew: dt.timedelta = dt.timedelta(minutes=5)
    witnessed: tuple[str, ...] = ()
    """Signed notes kept elsewhere (SIEM, WORM), checked with those in the export."""


@dataclass
class Verification:
    """A report and the records it is about, for further checks."""

    report: Report
    records: list[dict[str, Any]] = field(default_factory=list)


def verify(lines: Iterable[bytes], options: Options) -> Verification:
    """Verify an export given as lines with or without their ends."""
    return _Verifier(options).run(lines)


class _Verifier:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report()
        self.records: list[dict[str, Any]] = []
        self.tree = Tree()
        self.chain = export.GENESIS
        self.key = options.key
        self.header: dict[str, Any] | None = None
        self.notes: list[tuple[str, int, SignedCheckpoint]] = []
        self.proofs: list[tuple[int, bytes, list[str]]] = []
        self.last_recorded = ""

    def run(self, lines: Iterable[bytes]) -> Verification:
        number = 0
        for number, line in enumerate(lines, 1):
            self._line(number, line.removesuffix(b"\n"))
        if number == 0:
            self.report.add("export.empty", "line 1", "the export is empty")
        for position, note in enumerate(self.options.witnessed, 1):
            self._note(f"witnessed checkpoint {position}", note, None)
        self._counts()
        self._checkpoints()
        if not self.report.partial:
            self.report.extend(sequences.check(self.records, self.options.now, self.options))
        return Verification(self.report, self.records)

    def _line(self, number: int, line: bytes) -> None:
        place = f"line {number}"
        try:
            value = export.read_line(line)
        except ESTSuiteError as exc:
            self.report.add("export.malformed", place, exc.reason)
            return
        if (value["type"] == "log") != (number == 1):
            self.report.add("export.header", place, "the header is the first line and no other")
        elif value["type"] == "log":
            self._header(place, value)
        elif value["type"] == "checkpoint":
            self.report.checkpoints += 1
            self._note(f"{place}, checkpoint {value['size']}", value["note"], value["size"])
        else:
            if self.report.checkpoints:
                self.report.add("export.order", place, "a record after a checkpoint")
            self._record(f"{place}, record {value['log_index']}", value)

    def _header(self, place: str, value: dict[str, Any]) -> None:
        self.header = value
        self.report.origin = value["origin"]
        self.report.partial = value["correlation_id"] is not None
        try:
            named = VerifierKey.parse(value["vkey"])
        except ESTSuiteError as exc:
            self.report.add("key.malformed", place, exc.reason)
            return
        if named.name != value["origin"]:
            self.report.add("key.name", place, "the key is not that of the origin")
        if self.key is None:
            self.key = named
        elif str(self.key) != str(named):
            self.report.add("key.differs", place, "the export names another key than the given one")

    def _record(self, place: str, value: dict[str, Any]) -> None:
        self.report.records += 1
        octets = value["leaf"].encode()
        hashed = leaf_hash(octets)
        if value["leaf_hash"] != hashed.hex():
            self.report.add("record.leaf_hash", place, "the leaf does not have this hash")
        self._content(place, value, octets)
        if self.report.partial:
            self._in_part(place, value, hashed)
            return
        if "proof" in value:
            self.report.add("record.proof", place, "a whole log has no inclusion proofs")
        if value["log_index"] != self.tree.size:
            self.report.add(
                "record.index", place, f"log_index {self.tree.size} is expected in this place"
            )
        if value["prev_hash"] != self.chain.hex():
            self.report.add("record.prev_hash", place, "prev_hash does not chain")
        self.chain = export.chain_hash(self.chain, hashed)
        self.tree.append(hashed)

    def _in_part(self, place: str, value: dict[str, Any], hashed: bytes) -> None:
        if "proof" in value:
            self.proofs.append((value["log_index"], hashed, value["proof"]))
        else:
            self.report.add("record.unsealed", place, "no checkpoint covers this record yet")

    def _content(self, place: str, value: dict[str, Any], octets: bytes) -> None:
        try:
            leaf = canonical.parse(octets)
            if canonical.encode(leaf) != octets:
                self.report.add("record.canonical", place, "the leaf is not canonical JSON")
            index, recorded, record = leaf["log_index"], leaf["recorded_at"], leaf["record"]
            recorded_at = dt.datetime.fromisoformat(recorded)
            occurred_at = dt.datetime.fromisoformat(record["occurred_at"])
            late = occurred_at - recorded_at > self.options.clock_skew
            wanted = self.header and self.header["correlation_id"]
            if wanted is not None and record["correlation_id"] != wanted:
                self.report.add("record.correlation", place, "the correlation id is another one")
        except (ESTSuiteError, KeyError, TypeError, ValueError):
            self.report.add("record.malformed", place, "the leaf is not an audit record")
            return
        if index != value["log_index"]:
            self.report.add("record.index", place, f"the leaf says it is record {index}")
        if recorded < self.last_recorded:
            self.report.add("record.time", place, "recorded before the record preceding it")
        if late:
            self.report.add("record.time", place, "occurred later than it was recorded")
        self.last_recorded = recorded
        self.records.append(leaf)

    def _note(self, place: str, note: str, size: int | None) -> None:
        try:
            signed = parse_signed(note)
        except ESTSuiteError as exc:
            self.report.add("checkpoint.malformed", place, exc.reason)
            return
        if size is not None and signed.checkpoint.size != size:
            self.report.add("checkpoint.size", place, "the note is of another size")
        if size is not None and self.notes and size <= self.notes[-1][1]:
            self.report.add("checkpoint.order", place, "checkpoints are not in order of size")
        self.notes.append((place, signed.checkpoint.size, signed))

    def _counts(self) -> None:
        for name in ("records", "checkpoints"):
            found = getattr(self.report, name)
            if self.header and self.header[name] != found:
                self.report.add(
                    "export.count", "line 1", f"{self.header[name]} {name} announced, {found} here"
                )

    def _checkpoints(self) -> None:
        before: SignedCheckpoint | None = None
        for place, _, signed in sorted(self.notes, key=lambda n: n[1]):
            try:
                self._checkpoint(place, signed, before)
            except ESTSuiteError as exc:
                self.report.add(exc.code, place, exc.reason)
                continue
            before = signed
        if self.report.partial:
            self._proofs(before)

    def _checkpoint(
        self, place: str, signed: SignedCheckpoint, before: SignedCheckpoint | None
    ) -> None:
        point = signed.checkpoint
        if self.header and point.origin != self.header["origin"]:
            self.report.add("checkpoint.origin", place, f"the origin is {point.origin}")
        if self.key is not None:
            signed.verify(self.key)
        if self.report.partial:
            self.report.sealed = point.size
            self.report.root = point.root.hex()
            return
        if point.size > self.tree.size or self.tree.root(point.size) != point.root:
            raise AuditChainBroken("the records do not have this root", code="checkpoint.root")
        self.report.sealed, self.report.root = point.size, point.root.hex()
        if before is not None and before.checkpoint.size:
            old = before.checkpoint
            proof = self.tree.consistency(old.size, point.size)
            verify_consistency(old.size, point.size, proof, old.root, point.root)

    def _proofs(self, newest: SignedCheckpoint | None) -> None:
        for index, hashed, proof in self.proofs:
            place = f"record {index}"
            if newest is None:
                self.report.add("record.unsealed", place, "there is no checkpoint")
                continue
            point = newest.checkpoint
            try:
                nodes = [bytes.fromhex(node) for node in proof]
                verify_inclusion(hashed, index, point.size, nodes, point.root)
            except (ESTSuiteError, ValueError, TypeError):
                self.report.add("record.inclusion", place, "the inclusion proof does not hold")
