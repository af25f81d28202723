"""What one rotation costs, from the results of enroll.py and the measured footprint (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from estbench.report import SUITE, enrollment
from estbench.results import Results, summary
from estclient.agent.settings import AgentSettings
from loadmodel.footprint import CLAIM, Footprint

SINGLE = ("est-frontend", "ca-signer", "renewal", "audit")
"""Processes of Python: one uses one core."""
BUSY = 0.5
"""Assumed: the share of a core, or of a server, that is used at the busiest minute."""
_AT_ONCE = 16
_MOST_AT_ONCE = 64
_CACERTS_MEAN = 0.75
"""``TrustKeeper`` asks after half to the whole of ``cacerts_every_s``."""


@dataclass(frozen=True)
class Costs:
    """Per rotation, unless another unit is in the name."""

    cpu_ms: dict[str, float]
    connection_ms: float
    """est-frontend, a new connection with an enrollment, at c = 64."""
    signature_ms: float
    """ca-signer, a re-enrollment in full batches."""
    cacerts_every_s: float
    wal_octets: float
    nats_in: float
    nats_out: float
    event_octets: float
    audit_messages: float
    audit_record_octets: float
    audit_records: float
    ledger_octets: float
    renewal_octets: float
    slot_octets: float
    audit_octets: float
    pss_mb: dict[str, float]
    fuller: dict[str, float]
    """By part: how many times less an enrollment costs at c = 64 than at c = 16, in fuller batches."""
    claim_ms: float
    """Of renewal's claim, however many slots are due."""
    nats_connection_octets: float
    """Memory of nats-server for an agent's connection."""

    @classmethod
    def of(cls, results: Results, footprint: Footprint) -> Costs:
        """Join both measurements."""
        rotation = footprint.rotation
        return cls(
            cpu_ms=footprint.rotation_cpu_ms,
            connection_ms=_part(results, "est-frontend"),
            signature_ms=_part(results, "ca-signer") * reenrollment_ratio(results, "ca-signer"),
            cacerts_every_s=_CACERTS_MEAN * AgentSettings.model_fields["cacerts_every_s"].default,
            wal_octets=rotation.wal_octets,
            nats_in=rotation.nats_octets_in,
            nats_out=rotation.nats_octets_out,
            event_octets=rotation.stream_octets["PKI_EVENTS"],
            audit_messages=rotation.streams["AUDIT_ISSUE"],
            audit_record_octets=rotation.audit_octets,
            audit_records=rotation.audit_records,
            ledger_octets=footprint.ledger_octets(),
            renewal_octets=footprint.renewal_octets(),
            slot_octets=footprint.slot_octets(),
            audit_octets=footprint.audit_octets(),
            pss_mb=results.pss_mb[SUITE],
            fuller=fuller(results),
            claim_ms=footprint.counting_ms[CLAIM],
            nats_connection_octets=footprint.connection_kb * 1e3,
        )

    @property
    def disk_octets(self) -> float:
        """What a rotation leaves in the databases for ever."""
        return self.ledger_octets + self.renewal_octets + self.audit_octets

    @property
    def signed_per_s(self) -> float:
        """What one signer with a core of its own signs when batches are full."""
        return 1000 / self.signature_ms

    def full_per_s(self, part: str) -> float:
        """Return the rotations a second at which a part has used one core, in batches as measured."""
        return 1000 / self.cpu_ms[part]

    def most_per_s(self, part: str) -> float:
        """Return the same in batches as full as those of ``enroll.py`` at c = 64: calculated."""
        return self.full_per_s(part) * self.fuller[part]

    def cacerts_ms_per_s(self, certificates: int) -> float:
        """Return what the agents' questions for CA certificates cost the front ends.

        As much as a connection with an enrollment: no figure of its own, so an upper bound.
        """
        return certificates / self.cacerts_every_s * self.connection_ms


def reenrollment_ratio(results: Results, part: str) -> float:
    """Return what a re-enrollment costs a process in relation to an enrollment; 1 if unknown."""
    first = enrollment(results, SUITE, "new", _AT_ONCE)
    again = summary(
        results.measurements, server=SUITE, operation="reenroll", connections="new", c=_AT_ONCE
    )
    if first is None or again is None:
        return 1.0
    return again.parts[part] / first.parts[part]


def fuller(results: Results) -> dict[str, float]:
    """Return by part what an enrollment costs at c = 16 in relation to c = 64."""
    some = enrollment(results, SUITE, "new", _AT_ONCE)
    many = enrollment(results, SUITE, "new", _MOST_AT_ONCE)
    if some is None or many is None:
        return dict.fromkeys(next(iter(results.measurements)).cpu_ms, 1.0)
    return {part: max(1.0, some.parts[part] / ms) for part, ms in many.parts.items()}


def _part(results: Results, part: str) -> float:
    most = _MOST_AT_ONCE if _MOST_AT_ONCE in results.requests else max(results.requests)
    found = enrollment(results, SUITE, "new", most)
    assert found is not None
    return found.parts[part]
