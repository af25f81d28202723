"""What one certificate leaves behind and moves: the JSON file of a measurement (pure)."""

from __future__ import annotations

import statistics

from pydantic import BaseModel, ConfigDict

from loadmodel.agent_users import UsersCost
from loadmodel.policy_cost import PolicyCost

SCHEMAS = ("ca_signer", "renewal", "audit")
CLAIM = "renewal, a claim while all slots are due"


class Stage(BaseModel):
    """What a number of certificates added, per certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificates: int
    tables: dict[str, float]
    """Octets by table with its indexes and TOAST, as ``schema.table``; a partitioned one in all."""
    rows: dict[str, float]
    """Rows inserted, by table."""
    streams: dict[str, float]
    """Messages stored, by stream."""
    stream_octets: dict[str, float]
    """Octets that stay in a stream: of work queues nothing does."""
    wal_octets: float
    audit_records: float
    audit_octets: float
    """Of the records as text, without tables around them."""
    nats_octets_in: float
    """What nats-server read, from clients and from its files."""
    nats_octets_out: float
    """What nats-server wrote, to clients and into its files."""

    def schema_octets(self, schema: str) -> float:
        """Return the octets in the tables of one service."""
        return sum(n for table, n in self.tables.items() if table.startswith(f"{schema}."))


class Footprint(BaseModel):
    """Everything that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    revision: str
    postgresql: str
    nats_server: str
    enrollment: Stage
    """First enrollments by agents: certificate, schedule, nothing rotated."""
    rotation: Stage
    """Whole rotations by agents: due, re-enrolled, proven in use, old one deprecated and retired."""
    filled: dict[str, float]
    """Octets of a row by table, with its indexes, in tables of ``filled_rows`` rows."""
    filled_rows: int
    rotation_cpu_ms: dict[str, float]
    """CPU-ms of a rotation by process, from its announcement to the end of the overlap, idle work
    subtracted."""
    counting_ms: dict[str, float]
    """Milliseconds of statements that read a table, or all that is due, over ``filled_rows`` rows."""
    policy: list[PolicyCost]
    agents: list[UsersCost]

    @property
    def connection_kb(self) -> float:
        """The median of what a connection takes: the garbage of a start blurs each figure."""
        return statistics.median(found.connection_kb for found in self.agents)

    def ledger_octets(self) -> float:
        """Return what a certificate adds to ledger and directory, for ever."""
        return self._filled("ca_signer")

    def audit_octets(self) -> float:
        """Return what a rotation adds to the log: records by pages, lookup tables as filled."""
        records = self.rotation.tables.get("audit.record", 0.0)
        rows = self.rotation.audit_records
        return records + rows * self.filled["audit.seen"] + self.filled["audit.issued"]

    def renewal_octets(self) -> float:
        """Return what a certificate adds to renewal, for ever; the row of its slot stays one."""
        return self.filled["renewal.certificate"]

    def slot_octets(self) -> float:
        """Return what a slot takes in renewal, however many certificates it had."""
        return self.filled["renewal.renewal_slot"]

    def _filled(self, schema: str) -> float:
        return sum(n for table, n in self.filled.items() if table.startswith(f"{schema}."))
