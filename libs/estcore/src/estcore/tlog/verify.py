"""Offline verification of an exported log: needs the export and a public key, nothing else.

1. every line has the one spelling an export has, and the counts of the header hold
2. log_index is contiguous, the leaf hash is that of the leaf, prev_hash chains
3. every checkpoint is signed, of this origin, and has the root of its size
4. each checkpoint's tree begins with the one before it
5. checkpoints reach as far as the service signs them: some exist, and none is missing for long
6. producers' sequences have no gaps or repetitions, times do not run backwards
7. no intent is without its outcome for long
8. records of which only the hashes are here were purged by a record of the log; an archive begins
   at the edge of the tree that its checkpoint signs

Optional, with keys or anchors from outside the export: cosignatures of witnesses, and time stamps.

Not checked: who held the signing key, and records after the newest checkpoint beyond their own
hashes. A log cut at an older checkpoint is a valid older log: only a checkpoint kept outside the
export shows that records are missing. A finding is data, not an exception, so that one report
names every place. One change is one finding (``record_chain``): what follows from it is none.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from estcore.errors import AuditChainBroken, ESTSuiteError
from estcore.tlog import canonical, export, sequences
from estcore.tlog.checkpoint import SignedCheckpoint, VerifierKey, parse_signed
from estcore.tlog.cosignature import CosignerKey, verify_cosignature
from estcore.tlog.cross import cross
from estcore.tlog.findings import Cosigned, Finding, Report, Sealed, Signer, Stamped
from estcore.tlog.leaf import read_leaf
from estcore.tlog.purged import Absent, merged, unrecorded
from estcore.tlog.record_chain import LINES_IN_ONE, Line, RecordChain
from estcore.tlog.timestamp import Authority, stamped_at
from estcore.tlog.tree import HASH_BYTES, Frontier, leaf_hash, verify_consistency, verify_inclusion

__all__ = ["Finding", "Options", "Report", "Verification", "cross", "verify"]


def topic_service(topic: str) -> str | None:
    """Return whose records come on a topic: ``audit.<issue|refusal>.<service>[.<instance>]``."""
    tokens = topic.split(".")
    known = tokens[0] == "audit" and tokens[1:2] in (["issue"], ["refusal"])
    return tokens[2] if known and len(tokens) > 2 else None  # noqa: PLR2004 - the third


CLOCK_SKEW = dt.timedelta(minutes=5)
RECORD_AHEAD = "audit.record_ahead"
"""Action of the record by which audit notes that it took a record of the future."""


@dataclass(frozen=True)
class Options:
    """Options of a verification. ``key`` None takes the key the export names itself."""

    now: dt.datetime
    key: VerifierKey | None = None
    outcome_within: dt.timedelta = dt.timedelta(minutes=15)
    sequence_settles: dt.timedelta = dt.timedelta(minutes=2)
    clock_skew: dt.timedelta = CLOCK_SKEW
    sealed_within: dt.timedelta = dt.timedelta(hours=1)
    """The longest ``checkpoint.interval_s`` that a log may have."""
    live: bool = False
    """The lines come from the running log: its newest records may have no checkpoint yet."""
    kept: tuple[str, ...] = ()
    """Signed notes kept outside the export; it must contain at least what they cover."""
    witnesses: tuple[CosignerKey, ...] = ()
    """Witnesses whose cosignatures the log must have."""
    whole: bool = False
    """Keep records whole for the caller; otherwise only what is compared across records."""
    authorities: tuple[Authority, ...] = ()
    """Time-stamping authorities whose time stamps the log must have."""


@dataclass
class Verification:
    """A report and the records it is about, for further checks."""

    report: Report
    records: list[dict[str, Any]] = field(default_factory=list)
    newest: SignedCheckpoint | None = None
    """The newest valid checkpoint."""
    absent: list[Absent] = field(default_factory=list)
    """Records of which only the hashes are here."""


_EDGE_LINE = 2
_COMPARED = frozenset(
    {
        *("record_id", "producer", "producer_seq", "action", "phase", "outcome"),
        *("correlation_id", "target", "details", "items"),
    }
)
_COMPARED_TARGET = ("issuance_id", "request_id", "serial", "certificate_sha256")
_SIGNATURE = "audit.chain_broken"


def _compared(leaf: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a leaf that are compared with those of others, or with a ledger."""
    record = _only(leaf["record"], _COMPARED)
    if record.get("items"):
        record["items"] = [_only(item, _COMPARED) for item in record["items"]]
    return {"log_index": leaf["log_index"], "recorded_at": leaf["recorded_at"], "record": record}


def _only(record: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    found = {name: value for name, value in record.items() if name in names}
    target = found.get("target")
    if target is not None:
        found["target"] = {name: target[name] for name in _COMPARED_TARGET if name in target}
    return found


def _hash(text: str) -> bytes:
    """Return a hash; nothing for what is none."""
    try:
        return export.unhex(text)
    except ValueError:
        return b""


def verify(lines: Iterable[bytes], options: Options) -> Verification:
    """Verify an export given as lines with or without their ends."""
    return _Verifier(options).run(lines)


@dataclass(frozen=True)
class _Note:
    place: str
    signed: SignedCheckpoint
    kept: bool

    @property
    def size(self) -> int:
        return self.signed.checkpoint.size


class _Verifier:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report()
        self.records: list[dict[str, Any]] = []
        self.chain = RecordChain(self.report, self._keep)
        self.key = options.key
        if self.key is not None:
            self.report.signer = Signer(self.key.name, self.key.key_hash.hex(), given=True)
        self.header: dict[str, Any] | None = None
        self.first = 0
        self.absent: list[tuple[int, int]] = []
        self.notes: list[_Note] = []
        self.proofs: list[tuple[int, bytes, list[str]]] = []
        self.recorded: dict[int, str] = {}
        self.latest = ""
        self.disorder = False
        """Lines are out of order, and a finding says so."""
        self.cut_short = False
        """Checkpoints that the header announces are not here."""
        self.unreadable = self.again = 0
        """Lines that cannot be read, and checkpoints that are here twice."""
        self.ahead: list[tuple[str, str]] = []
        self.newest: SignedCheckpoint | None = None

    def run(self, lines: Iterable[bytes]) -> Verification:
        number = 0
        for number, line in enumerate(lines, 1):
            self._line(number, line.removesuffix(b"\n"))
        if number == 0:
            self.report.add("export.empty", "line 1", "the export is empty")
        for position, note in enumerate(self.options.kept, 1):
            self._note(f"kept checkpoint {position}", note, None)
        points = [note.signed.checkpoint for note in self.notes]
        self.chain.finish({point.size: point.root for point in points})
        if self.chain.out_of_order is not None:
            self._disorder("record.index", *self.chain.out_of_order)
        self._counts()
        self._checkpoints()
        self._witnesses()
        self._timestamps()
        self._period()
        self._times()
        absent = self._absent()
        if not self.report.partial:
            self._tail()
            now = self.options.now
            if self.report.archive is not None and self.report.last_recorded_at is not None:
                now = dt.datetime.fromisoformat(self.report.last_recorded_at)
            self.report.extend(sequences.check(self.records, now, self.options, absent))
        return Verification(self.report, self.records, self.newest, absent)

    def _absent(self) -> list[Absent]:
        """Return the records that are not here, and report those that were purged."""
        ranges = merged(self.absent)
        if self.report.archive is None:
            self.report.purged = ranges
            self.report.extend(unrecorded(ranges, self.records))
        elif self.first:
            ranges = [(0, self.first), *ranges]
        ranges = merged([*ranges, *self.chain.lost])
        return [
            Absent(*part, self.recorded.get(part[0] - 1), self.recorded.get(part[1]))
            for part in ranges
        ]

    def _line(self, number: int, line: bytes) -> None:
        place = f"line {number}"
        try:
            value = export.read_line(line)
        except ESTSuiteError as exc:
            self.report.add("export.malformed", place, exc.reason)
            self.unreadable += 1
            self.chain.add_unreadable()
            return
        is_header = value["type"] in export.HEADERS
        if is_header != (number == 1):
            self._disorder("export.header", place, "the header is the first line and no other")
        if is_header:
            if self.header is None:
                self._header(place, value)
        elif value["type"] == "edge":
            self._edge(place, number, value)
        elif value["type"] == "purged":
            self._purged(place, value)
        elif value["type"] == "checkpoint":
            self.report.checkpoints += 1
            self._note(f"{place}, checkpoint {value['size']}", value["note"], value["size"])
        else:
            if self.report.checkpoints:
                self._disorder("export.order", place, "a record after a checkpoint")
            self._record(f"{place}, record {value['log_index']}", value)

    def _disorder(self, code: str, place: str, sentence: str) -> None:
        """Report the first line that is not in its place."""
        if not self.disorder:
            self.report.add(code, place, sentence)
        self.disorder = True

    def _edge(self, place: str, number: int, value: dict[str, Any]) -> None:
        """Take the edge of the tree before an archive."""
        try:
            octets = b"".join(export.unhex(node) for node in value["hashes"])
            edge = Frontier.from_bytes(self.first, octets)
        except (ESTSuiteError, ValueError, TypeError):
            self.report.add("export.malformed", place, "not the edge of the tree before it")
            return
        if self.report.archive is None or number != _EDGE_LINE:
            self._disorder("export.order", place, "an edge is the second line of an archive")
        self.chain.begin_at_edge(edge)

    def _purged(self, place: str, value: dict[str, Any]) -> None:
        """Take the hashes of records whose content is not here."""
        index = value["log_index"]
        place = f"{place}, records from {index} on"
        if self.report.partial or self.report.checkpoints:
            self._disorder("export.order", place, "hashes of records are in no place of theirs")
        try:
            hashes = export.read_hashes(value["leaf_hashes"])
        except ESTSuiteError as exc:
            self.report.add("export.malformed", place, exc.reason)
            end = index + min(len(value["leaf_hashes"]) // (2 * HASH_BYTES), export.PURGED_HASHES)
            self.absent.append((index, end))
            self.chain.pass_over(place, index, end)
            return
        self.absent.append((index, index + len(hashes)))
        self.chain.add_purged(place, index, hashes)

    def _header(self, place: str, value: dict[str, Any]) -> None:
        if value["type"] == "archive":
            self.report.archive, self.first = value["month"], max(0, value["first"])
            self.chain.begin_archive(self.first)
            value = {**value, "correlation_id": None}
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
            self.report.signer = Signer(named.name, named.key_hash.hex(), given=False)
        elif str(self.key) != str(named):
            self.report.add("key.differs", place, "the export names another key than the given one")

    def _record(self, place: str, value: dict[str, Any]) -> None:
        self.report.records += 1
        octets = value["leaf"].encode()
        hashed, claimed = leaf_hash(octets), _hash(value["leaf_hash"])
        leaf, index = None, value["log_index"]
        if claimed == hashed:
            leaf = self._content(place, octets)
        else:
            self.report.add("record.leaf_hash", place, "the leaf does not have this hash")
        if leaf is not None and leaf["log_index"] != index:
            index = leaf["log_index"]
            self.report.add("record.index", place, f"the leaf says it is record {index}")
        line = Line(place, index, hashed, claimed, _hash(value["prev_hash"]), leaf)
        if self.report.partial:
            self._in_part(line, value)
            return
        if self.report.archive is not None and self.absent:
            self._disorder("export.order", place, "a record behind hashes of an archive")
        if "proof" in value:
            self.report.add("record.proof", place, "a whole log has no inclusion proofs")
        self.chain.add(line)

    def _in_part(self, line: Line, value: dict[str, Any]) -> None:
        if "proof" not in value:
            self.report.add("record.unsealed", line.place, "no checkpoint covers this record yet")
        elif line.hashed == line.claimed:
            self.proofs.append((value["log_index"], line.hashed, value["proof"]))
        self._keep(line)

    def _content(self, place: str, octets: bytes) -> dict[str, Any] | None:
        """Return the leaf; None if it is none."""
        try:
            leaf = read_leaf(octets)
            is_canonical = canonical.is_canonical(leaf, octets)
        except ESTSuiteError as exc:
            self.report.add("record.malformed", place, f"not an audit record: {exc.reason}")
            return None
        if not is_canonical:
            self.report.add("record.canonical", place, "the leaf is not canonical JSON")
        record = leaf["record"]
        correlation_id = self.header and self.header["correlation_id"]
        if correlation_id is not None and record["correlation_id"] != correlation_id:
            self.report.add("record.correlation", place, "the correlation id is another one")
        topic, service = leaf["topic"], record["producer"]["service"]
        if topic_service(topic) != service:
            self.report.add("record.topic", place, f"a record of {service} that came on {topic}")
        return leaf

    def _keep(self, line: Line) -> None:
        """Keep a record for the checks across records; they come in the order of the log."""
        if line.leaf is None:
            return
        recorded, record = line.leaf["recorded_at"], line.leaf["record"]
        if recorded < self.latest:
            self.report.add("record.time", line.place, "recorded before the record preceding it")
        self.latest = self.recorded[line.index] = recorded
        occurred_at = dt.datetime.fromisoformat(record["occurred_at"])
        if occurred_at - dt.datetime.fromisoformat(recorded) > self.options.clock_skew:
            self.ahead.append((line.place, record["record_id"]))
        self.records.append(line.leaf if self.options.whole else _compared(line.leaf))

    def _times(self) -> None:
        """Report records of the future, except those that audit noted when it took them."""
        noted = {
            str((leaf["record"].get("details") or {}).get("id"))
            for leaf in self.records
            if leaf["record"].get("action") == RECORD_AHEAD
            and leaf["record"]["producer"]["service"] == "audit"
        }
        for place, record_id in self.ahead:
            if record_id not in noted:
                self.report.add("record.ahead", place, "occurred later than it was recorded")

    def _note(self, place: str, note: str, size: int | None) -> None:
        try:
            signed = parse_signed(note)
        except ESTSuiteError as exc:
            self.report.add("checkpoint.malformed", place, exc.reason)
            return
        if size is not None and signed.checkpoint.size != size:
            self.report.add("checkpoint.size", place, "the note is of another size")
            return
        if size is not None and any(n.size == size and not n.kept for n in self.notes[-1:]):
            self.again += 1
            self._disorder("checkpoint.order", place, "this checkpoint is here again")
            return
        if size is not None and self.notes and size <= self.notes[-1].size:
            self._disorder("checkpoint.order", place, "checkpoints are not in order of size")
        self.notes.append(_Note(place, signed, kept=size is None))

    def _counts(self) -> None:
        """Compare the header with what is here, unless a finding says already what is missing."""
        if self.header is None:
            return
        here = {
            "records": self.report.records + self.chain.missing - self.chain.again,
            "checkpoints": self.report.checkpoints - self.again,
        }
        less = {name: self.header[name] - count for name, count in here.items()}
        covered = max((note.size for note in self.notes if not note.kept), default=0)
        if less["records"] and less["records"] == covered - self.chain.size:
            less["records"] = 0  # the checkpoint says so
        if min(less.values()) >= 0 and sum(less.values()) <= LINES_IN_ONE * self.unreadable:
            return
        if self.unreadable and -self.chain.missing <= less["records"] <= 0:
            return  # what is missing may be purged records, which are not announced
        wrong = [
            f"{self.header[name]} {name} announced, {self.header[name] - count} here"
            for name, count in less.items()
            if count
        ]
        self.cut_short = less["checkpoints"] > 0
        self.report.add("export.count", "line 1", "; ".join(wrong))

    def _checkpoints(self) -> None:
        tree = self.chain.tree
        self.report.tree_size, self.report.root = tree.size, tree.root().hex()
        faults: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for note in sorted(self.notes, key=lambda n: n.size):
            try:
                self._checkpoint(note)
            except ESTSuiteError as exc:
                faults[exc.code].append((note.place, exc.reason))
        keys = {finding.code for finding in self.report.findings} & {"key.differs"}
        for code, found in faults.items():
            if code == _SIGNATURE and keys and len(found) == len(self.notes):
                continue  # all are signed with the other key
            place, reason = found[-1] if code == "checkpoint.records" else found[0]
            more = f"; the same of {len(found) - 1} more" if len(found) > 1 else ""
            self.report.add(code, place, f"{reason}{more}")
        if self.report.partial:
            self._proofs(self.newest)

    def _checkpoint(self, note: _Note) -> None:
        point = note.signed.checkpoint
        named = any(finding.code == "key.name" for finding in self.report.findings)
        if self.header and point.origin != self.header["origin"] and not named:
            raise AuditChainBroken(f"the origin is {point.origin}", code="checkpoint.origin")
        if self.key is not None:
            note.signed.verify(self.key)
        if self.report.partial:
            self._of_part(note)
            return
        if point.size < self.first:
            raise AuditChainBroken("it is older than the archive", code="checkpoint.part")
        if point.size > self.chain.size:
            raise AuditChainBroken(
                f"it covers {point.size} records, the export has {self.chain.size}:"
                f" {point.size - self.chain.size} are missing",
                code="checkpoint.records",
            )
        if self.chain.cut is not None and point.size > self.chain.cut:
            return  # records that it covers are missing, which is a finding
        tree = self.chain.tree
        if tree.root(point.size) != point.root:
            raise AuditChainBroken("the records do not have this root", code="checkpoint.root")
        if self.newest is not None and self.newest.checkpoint.size:
            old = self.newest.checkpoint
            proof = tree.consistency(old.size, point.size)
            verify_consistency(old.size, point.size, proof, old.root, point.root)
        self._valid(note)

    def _witnesses(self) -> None:
        """Find the newest checkpoint that each witness cosigned; a wrong one is a finding."""
        for key in self.options.witnesses:
            newest: Cosigned | None = None
            for note in sorted(self.notes, key=lambda n: n.size):
                try:
                    seconds = verify_cosignature(note.signed, key)
                except AuditChainBroken as exc:
                    if exc.code != "witness.missing":
                        self.report.add(exc.code, note.place, exc.reason)
                    continue
                newest = Cosigned(key.name, note.size, seconds)
            if newest is None:
                sentence = f"no checkpoint is cosigned by {key.name}"
                self.report.add("witness.missing", "the log", sentence)
            else:
                self.report.witnesses.append(newest)

    def _timestamps(self) -> None:
        """Find the newest checkpoint that each authority stamped; a wrong one is a finding."""
        for authority in self.options.authorities:
            newest: Stamped | None = None
            for note in sorted(self.notes, key=lambda n: n.size):
                try:
                    at = stamped_at(note.signed, authority)
                except AuditChainBroken as exc:
                    if exc.code != "timestamp.missing":
                        self.report.add(exc.code, note.place, exc.reason)
                    continue
                self._existed(note, at)
                newest = Stamped(authority.name, note.size, at.isoformat())
            if newest is None:
                sentence = f"no checkpoint is stamped by {authority.name}"
                self.report.add("timestamp.missing", "the log", sentence)
            else:
                self.report.timestamps.append(newest)

    def _existed(self, note: _Note, at: dt.datetime) -> None:
        """What is under a checkpoint was recorded before it was stamped."""
        recorded = self.recorded.get(note.size - 1)
        if self.report.partial or recorded is None:
            return
        if dt.datetime.fromisoformat(recorded) > at + self.options.clock_skew:
            sentence = f"stamped at {at.isoformat()}, before its last record of {recorded}"
            self.report.add("timestamp.time", note.place, sentence)

    def _of_part(self, note: _Note) -> None:
        """A part proves a kept checkpoint only if it contains that very checkpoint."""
        point = note.signed.checkpoint
        if not note.kept:
            self.report.tree_size, self.report.root = point.size, point.root.hex()
        elif point not in [n.signed.checkpoint for n in self.notes if not n.kept]:
            self.report.add(
                "checkpoint.part",
                note.place,
                "the export of one correlation id cannot prove it: export the whole log",
            )
            return
        self._valid(note)

    def _valid(self, note: _Note) -> None:
        point = note.signed.checkpoint
        covered = None if self.report.partial else self.recorded.get(point.size - 1)
        sealed = Sealed(point.size, point.root.hex(), covered)
        self.newest = note.signed
        self.report.sealed = point.size
        self.report.last_checkpoint = sealed
        if self.report.first_checkpoint is None:
            self.report.first_checkpoint = sealed
        if note.kept:
            self.report.kept = point.size

    def _period(self) -> None:
        moments = list(self.recorded.values())
        if moments:
            self.report.first_recorded_at, self.report.last_recorded_at = moments[0], moments[-1]
        if not self.report.partial:
            self.report.unsealed = self.chain.tree.size - self.report.sealed

    def _tail(self) -> None:
        """Find checkpoints that were removed, as far as the records show it."""
        if self.report.archive is not None or self.chain.cut is not None:
            return
        if not self.options.live and self.header and not self.report.sealed:
            if not any(note.size for note in self.notes) and not self.cut_short:
                self.report.add("checkpoint.none", "line 1", "no checkpoint: nothing is signed")
            return
        # A checkpoint that does not hold is a finding of its own.
        sealed = max([self.report.sealed, *(note.size for note in self.notes)])
        moments = [moment for index, moment in self.recorded.items() if index >= sealed]
        if not moments:
            return
        last = self.options.now if self.options.live else dt.datetime.fromisoformat(moments[-1])
        if last - dt.datetime.fromisoformat(moments[0]) > self.options.sealed_within:
            self.report.add(
                "checkpoint.overdue",
                f"record {sealed}",
                f"no checkpoint covers the records from {moments[0]} on",
            )

    def _proofs(self, newest: SignedCheckpoint | None) -> None:
        for index, hashed, proof in self.proofs:
            place = f"record {index}"
            if newest is None:
                self.report.add("record.unsealed", place, "there is no checkpoint")
                continue
            point = newest.checkpoint
            try:
                nodes = [export.unhex(node) for node in proof]
                verify_inclusion(hashed, index, point.size, nodes, point.root)
            except (ESTSuiteError, ValueError, TypeError):
                self.report.add("record.inclusion", place, "the inclusion proof does not hold")
