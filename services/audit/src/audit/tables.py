"""Tables of the audit log: the one definition of the schema, compared with the migrations.

Partitions of ``record`` by month, triggers that refuse changes and their functions are in the
migration only: SQLAlchemy has no words for them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    true,
)
from sqlalchemy.dialects.postgresql import UUID

metadata = MetaData()


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False)


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


head = Table(
    "head",
    metadata,
    Column("log", SmallInteger, primary_key=True, autoincrement=False, server_default="1"),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("frontier", LargeBinary, nullable=False, server_default=""),
    Column("last_hash", LargeBinary, nullable=False),
    Column(
        "recorded_at",
        DateTime(timezone=True),
        nullable=False,
        server_default="1970-01-01 00:00:00+00",
    ),
    CheckConstraint("log = 1", name="head_log_check"),
)

record = Table(
    "record",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("recorded_at", DateTime(timezone=True), primary_key=True),
    Column("record_id", UUID, nullable=False),
    _time("occurred_at"),
    Column("correlation_id", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("producer_seq", BigInteger),
    Column("leaf", Text, comment="canonical JSON that was hashed, of records of before"),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column(
        "packed_leaf",
        LargeBinary,
        comment="the same, deflated: est-audit export writes it out",
    ),
    Index("record_occurred_at", "occurred_at", postgresql_using="brin"),
)

record_term = Table(
    "record_term",
    metadata,
    Column("term", BigInteger, nullable=False),
    _time("recorded_at"),
    Column("chunk", BigInteger, nullable=False),
    Column("places", LargeBinary, nullable=False),
    Index("record_term_term", "term", "recorded_at", "chunk"),
    comment="which records of a chunk have a term: two octets each",
)

record_chunk = Table(
    "record_chunk",
    metadata,
    Column("first_index", BigInteger, primary_key=True, autoincrement=False),
    Column("end_index", BigInteger, nullable=False),
    _time("recorded_at"),
    Index("record_chunk_recorded_at", "recorded_at"),
    comment="chunks of the log whose terms are indexed",
)

legal_hold = Table(
    "legal_hold",
    metadata,
    Column("name", Text, primary_key=True),
    _time("since"),
    _time("until"),
    Column("reason", Text, nullable=False),
    _time("placed_at"),
    Column("placed_by", Text, nullable=False),
    Column("released_at", DateTime(timezone=True)),
    Column("released_by", Text),
    CheckConstraint("since < until", name="legal_hold_check"),
    comment="periods of which nothing is purged; only the owner writes it",
)

purge = Table(
    "purge",
    metadata,
    Column("first_index", BigInteger, primary_key=True, autoincrement=False),
    Column("end_index", BigInteger, nullable=False),
    Column("month", Text, nullable=False),
    _time("purged_at"),
    Column("archive_sha256", Text),
    comment="records whose content is not here, only their hashes in tile",
)

tile = Table(
    "tile",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
    comment="256 hashes of a level each (C2SP tlog-tiles), and the root of them",
)

seen = Table(
    "seen",
    metadata,
    Column("record_id", UUID, primary_key=True),
    Column("log_index", BigInteger, nullable=False),
)

issued = Table(
    "issued",
    metadata,
    Column("issuance_id", Text, primary_key=True),
    _time("issued_at"),
    Index("issued_issued_at", "issued_at"),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    _time("signed_at"),
)

witness = Table(
    "witness",
    metadata,
    Column("name", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    _now("at"),
    comment="what each witness has cosigned last, with the right edge of that tree",
)

cosignature = Table(
    "cosignature",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("witness", Text, primary_key=True),
    Column("line", Text, nullable=False),
    _now("at"),
)

sink_cursor = Table(
    "sink_cursor",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("next_index", BigInteger, nullable=False, server_default="0"),
    Column("checkpoint_size", BigInteger, nullable=False, server_default="0"),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    _now("moved_at"),
)

sink_dead_letter = Table(
    "sink_dead_letter",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    _now("at"),
)

window_check = Table(
    "window_check",
    metadata,
    Column("start", DateTime(timezone=True), primary_key=True),
    _time("end"),
    Column("expected", BigInteger, nullable=False),
    Column("found", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    _now("at"),
    CheckConstraint("state in ('equal', 'open', 'given_up')", name="window_check_state_check"),
)

heartbeat = Table(
    "heartbeat",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=true()),
    _now("at"),
    CheckConstraint("id", name="heartbeat_id_check"),
    comment="written by each process, to see that PostgreSQL stores",
)
