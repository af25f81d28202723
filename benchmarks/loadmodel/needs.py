"""How many servers, and of what size, a fleet needs (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from estcore.messages.topics import PKI_EVENTS, STREAMS
from estcore.runtime.settings import DatabaseSettings
from loadmodel.costs import BUSY, Costs

YEAR_S = 365 * 86_400
GIB = 1 << 30
LEAST = {"est-frontend": 3, "ca-signer": 2, "renewal": 2, "audit": 2}
"""As deploy/k8s runs them."""
_NATS_SERVERS = 3
_WITH_DATABASE = ("ca-signer", "renewal", "audit")
_CONNECTIONS = DatabaseSettings.model_fields["pool_size"].default


@dataclass(frozen=True)
class Need:
    """What one fleet needs."""

    certificates: int
    mean_per_s: float
    peak_per_s: float
    """Rotations, in the busiest minute."""
    cacerts_per_s: float
    replicas: dict[str, int]
    writer_share: float
    """Of the one audit writer's core, in the busiest minute."""
    postgres_cores: int
    postgres_connections: int
    wal_per_s: float
    live_octets: float
    """Rows and indexes of certificates that are good, and slots: what should be in memory."""
    nats_octets_per_s: float
    """Into and out of the stream leaders, copies to two followers included."""
    nats_cores: int
    nats_connections: float
    """Octets of memory, all agents connected, in all servers together."""
    nats_disk: int
    """Per server, all streams full."""
    events_s: float
    """How far back PKI_EVENTS reaches."""
    rotations_a_year: float
    ledger_a_year: float
    renewal_a_year: float
    audit_a_year: float

    @property
    def disk_a_year(self) -> float:
        """Of all three schemas."""
        return self.ledger_a_year + self.renewal_a_year + self.audit_a_year


def need(certificates: int, *, mean_per_s: float, peak_per_s: float, costs: Costs) -> Need:
    """Calculate what a fleet needs from its rate and what a rotation costs."""
    busy_ms = {part: ms * peak_per_s for part, ms in costs.cpu_ms.items()}
    busy_ms["est-frontend"] += costs.cacerts_ms_per_s(certificates)
    replicas = {service: max(least, _cores(busy_ms[service])) for service, least in LEAST.items()}
    replicas["audit"] = LEAST["audit"]  # one writes, however many there are
    a_year = mean_per_s * YEAR_S
    events = next(s for s in STREAMS if s.name == PKI_EVENTS)
    followers = _NATS_SERVERS - 1
    return Need(
        certificates=certificates,
        mean_per_s=mean_per_s,
        peak_per_s=peak_per_s,
        cacerts_per_s=certificates / costs.cacerts_every_s,
        replicas=replicas,
        writer_share=busy_ms["audit"] / 1000,
        postgres_cores=max(2, _cores(busy_ms["PostgreSQL"])),
        postgres_connections=sum(replicas[s] * _CONNECTIONS for s in _WITH_DATABASE),
        wal_per_s=costs.wal_octets * peak_per_s,
        live_octets=certificates * (costs.ledger_octets + costs.renewal_octets + costs.slot_octets),
        nats_octets_per_s=peak_per_s * (costs.nats_in * (1 + followers) + costs.nats_out),
        nats_cores=max(2, _cores(busy_ms["NATS"])),
        nats_connections=certificates * costs.nats_connection_octets,
        nats_disk=sum(max(s.max_bytes, 0) for s in STREAMS),
        events_s=min(events.max_age_s, events.max_bytes / (costs.event_octets * mean_per_s)),
        rotations_a_year=a_year,
        ledger_a_year=a_year * costs.ledger_octets,
        renewal_a_year=a_year * costs.renewal_octets,
        audit_a_year=a_year * costs.audit_octets,
    )


def _cores(ms_per_s: float) -> int:
    """Return the cores that are busy for the assumed share at this much CPU time a second."""
    return math.ceil(ms_per_s / 1000 / BUSY)
