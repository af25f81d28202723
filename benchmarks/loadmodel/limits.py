"""Limits of settings and code, and the size of fleet at which each is reached (pure).

Sizes are certificates of the mixed fleet, where the limit is one of certificates or of their rate.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from ca_signer.revocation.crl import MOST
from est_frontend.settings import LimitSettings, ListenSettings, RateSettings
from estclient.agent.settings import AgentSettings
from estcore.messages.envelope import encode
from estcore.messages.state import REVOKED_SHARDS, SECRET_SHARDS, SecretVerifier
from estcore.messages.topics import AUDIT_ISSUE, EST_REQUESTS, PKI_EVENTS, STREAMS, Stream
from estcore.policy.labels import Label
from estcore.runtime.settings import DatabaseSettings
from loadmodel.costs import BUSY, Costs
from loadmodel.fleet import MIXED, PROFILES, renewals_per_s
from loadmodel.footprint import Footprint
from loadmodel.needs import LEAST, YEAR_S

OUTAGE_S = 600
AUDIT_OUTAGE_S = 3600
_PARTS = 256
"""The most parts of a CRL that ``crl_partitions`` allows."""
_ANSWER_TIMEOUT_S = 5.0
_PER_CERTIFICATE_PER_S = renewals_per_s(10**6, MIXED) / 10**6
_REVOKED_LIMIT = 400_000
"""As ``ca_signer.revocation.publisher``."""
_SECRET_ID = "device-0123456789"  # noqa: S105 - an id
_A_TIME = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Limit:
    """One limit."""

    what: str
    setting: str
    reached: float
    unit: str
    then: str
    remedy: str


def stream(name: str) -> Stream:
    """Return a stream by name."""
    return next(s for s in STREAMS if s.name == name)


def limits(costs: Costs, footprint: Footprint) -> list[Limit]:
    """Return all limits, those of the smallest fleets first, then those of another unit."""
    found = [
        *_of_streams(costs),
        *_of_frontends(costs),
        *_of_revocation(),
        *_of_services(costs, footprint),
    ]
    return sorted(found, key=lambda limit: (limit.unit != CERTIFICATES, limit.unit, limit.reached))


CERTIFICATES = "certificates"


def _of_streams(costs: Costs) -> list[Limit]:
    events, requests, audit = (stream(n) for n in (PKI_EVENTS, EST_REQUESTS, AUDIT_ISSUE))
    rate = _PER_CERTIFICATE_PER_S
    messages = min(
        audit.max_messages / costs.audit_messages, audit.max_bytes / costs.audit_record_octets
    )
    return [
        Limit(
            "`PKI_EVENTS` reaches back less than its days",
            f"{_gib(events)}, {events.max_age_s // 86_400} days",
            events.max_bytes / (events.max_age_s * rate * costs.event_octets),
            CERTIFICATES,
            "the oldest events go first; a renewal that was down for longer gets them by comparing "
            "with the ledger",
            "raise `max_bytes` of the stream",
        ),
        Limit(
            f"`EST_REQUESTS` is full after {OUTAGE_S // 60} minutes without a signer",
            f"{requests.max_per_topic:,} messages a group, issuer and priority",
            requests.max_per_topic / (OUTAGE_S * rate),
            CERTIFICATES,
            "503 `bus.full`; agents come back later, nothing is lost",
            "none needed; more groups of front ends, or priorities, have more room",
        ),
        Limit(
            f"`AUDIT_ISSUE` is full after {AUDIT_OUTAGE_S // 60} minutes without audit",
            f"{audit.max_messages:,} messages, {_gib(audit)}",
            messages / (AUDIT_OUTAGE_S * rate),
            CERTIFICATES,
            "no intent, so nothing is signed: 202 or 503",
            "raise `max_bytes` of the stream",
        ),
    ]  # fmt: skip


def _of_frontends(costs: Costs) -> list[Limit]:
    rate, front_ends = _PER_CERTIFICATE_PER_S, LEAST["est-frontend"]
    in_flight = LimitSettings.model_fields["max_in_flight"].default
    retry_s = Label.model_fields["retry_after_s"].default
    rates, listen = RateSettings(), ListenSettings.model_fields
    waiting = in_flight * (_ANSWER_TIMEOUT_S + retry_s) / _ANSWER_TIMEOUT_S
    per_front_end = BUSY * 1000 / costs.connection_ms
    verifier = SecretVerifier(
        secret_id=_SECRET_ID, sha256="0" * 64, not_after=_A_TIME, one_time=True
    )
    secrets = len(SECRET_SHARDS) * stream("PKI_STATE").max_message_bytes / len(encode(verifier))
    return [
        Limit(
            f"agents that ask {front_ends} front ends for CA certificates keep them half busy",
            f"`cacerts_every_s: {AgentSettings.model_fields['cacerts_every_s'].default:.0f}`",
            front_ends * per_front_end * costs.cacerts_every_s,
            CERTIFICATES,
            "front ends scale out; most of their work is this",
            "a longer `cacerts_every_s`, shorter than the time between `publish` and `sign` of a "
            "rollover",
        ),
        Limit(
            f"{front_ends} front ends have no place after {OUTAGE_S // 60} minutes without a signer",
            f"`limits.max_in_flight: {in_flight}`, `retry_after_s: {retry_s}`",
            front_ends * waiting / (OUTAGE_S * rate),
            CERTIFICATES,
            "503 `frontend.busy` in place of 202",
            "`retry_after_s: 60` on labels of agents",
        ),
        Limit(
            "enrollments with one secret, at one front end",
            f"`rates.identity_per_s: {rates.identity_per_s:.0f}`, burst {rates.identity_burst:.0f}",
            rates.identity_per_s,
            "per second",
            "429; agents repeat",
            "one secret per ward or device type, or one-time secrets",
        ),
        Limit(
            "connections of one address that have not finished their handshake, at one front end",
            f"`listen.max_handshakes_per_source: {listen['max_handshakes_per_source'].default}`",
            listen["max_handshakes_per_source"].default,
            "at once",
            "one more is closed; agents repeat",
            "raise it for a site behind one address, with `max_connections_per_source`",
        ),
        Limit(
            "one-time secrets that are good at the same time",
            f"{len(SECRET_SHARDS)} shards of one message",
            secrets,
            "secrets",
            "the shard is not published, so new secrets are refused",
            "certificates of the maker, or tokens, for first enrollments",
        ),
    ]


def _of_revocation() -> list[Limit]:
    mean = PROFILES["30 d"]
    cycle = mean.mean_cycle_s / mean.lifetime.total_seconds()
    live = (1 - cycle) / cycle
    return [
        Limit(
            "one CRL, where `revoke_replaced` is on",
            f"{MOST:,} entries a list",
            MOST / live,
            CERTIFICATES,
            "the list is not published: an error and an alarm",
            "`crl_partitions`, before it is needed",
        ),
        Limit(
            "revoked serial numbers for front ends, where `revoke_replaced` is on",
            f"{_REVOKED_LIMIT:,} an issuer, {len(REVOKED_SHARDS)} shards",
            _REVOKED_LIMIT / live,
            CERTIFICATES,
            "front ends refuse a part of them early; ca-signer refuses all",
            "`revoke_replaced` only where relying parties need it; several issuers",
        ),
        Limit(
            "a CRL in parts, where `revoke_replaced` is on",
            f"{_PARTS} parts",
            _PARTS * MOST / live,
            CERTIFICATES,
            "as for one CRL",
            "several issuers",
        ),
    ]


def _of_services(costs: Costs, footprint: Footprint) -> list[Limit]:
    policy = footprint.policy[-1]
    agents = footprint.agents[-1]
    timeout_ms = DatabaseSettings.model_fields["statement_timeout_s"].default * 1000
    row_ms = {name: ms / footprint.filled_rows for name, ms in footprint.counting_ms.items()}
    return [
        Limit(
            "the one audit writer is half busy",
            "one process, one core",
            BUSY * costs.full_per_s("audit") / _PER_CERTIFICATE_PER_S,
            CERTIFICATES,
            "`AUDIT_ISSUE` grows; when it is full, signing waits",
            "see above",
        ),
        Limit(
            "a policy takes a minute to read",
            f"{policy.read_s:.1f} s for {policy.rules:,} rules",
            policy.rules * 60 / policy.read_s,
            "rules",
            "starts, and takes a changed file, that late",
            "rules with placeholders",
        ),
        Limit(
            "nats-server reads its configuration for a minute, with a NATS user for each service",
            f"{agents.start_cpu_s:.1f} CPU-s for {agents.services:,} services, growing with the square",
            agents.services * (60 / agents.start_cpu_s) ** 0.5,
            "services",
            "starts and reloads take that long; each agent's connection takes "
            f"{footprint.connection_kb:.0f} kB of memory",
            "agents without `bus`; one user for the agents of a tenant",
        ),
        Limit(
            "renewal cannot count its slots for the gauges",
            f"`statement_timeout_s: {timeout_ms // 1000}`",
            timeout_ms / row_ms["renewal, slots"],
            CERTIFICATES,
            "gauges stand still, a warning; renewals go on",
            "a longer `metrics_every_s`, `statement_timeout_s`",
        ),
        Limit(
            "ca-signer cannot count the certificates of a year for the gauges",
            f"`statement_timeout_s: {timeout_ms // 1000}`",
            timeout_ms / row_ms["ca-signer, states"] / (_PER_CERTIFICATE_PER_S * YEAR_S),
            CERTIFICATES,
            "gauges stand still, a warning; signing goes on",
            "a longer `statement_timeout_s` and `count_every_s`",
        ),
        Limit(
            "ca-signer cannot count what expires soon for the gauges",
            f"`statement_timeout_s: {timeout_ms // 1000}`",
            timeout_ms / row_ms["ca-signer, expiring"],
            CERTIFICATES,
            "gauges stand still, a warning; signing goes on",
            "a longer `statement_timeout_s` and `count_every_s`",
        ),
    ]


@dataclass(frozen=True)
class Wall:
    """A part of which there is one, and the rate at which it is full."""

    what: str
    follows_from: str
    per_s: float
    """In batches as measured with a small fleet."""
    most_per_s: float
    """In full batches."""
    then: str


POSTGRES_CORES = 16
WAL_OCTETS_PER_S = 100e6


def walls(costs: Costs) -> list[Wall]:
    """Return what cannot be added by another replica, the lowest rate first."""
    found = [
        Wall(
            "audit: the one writer",
            "one core, measured CPU time of a rotation",
            costs.full_per_s("audit"),
            costs.most_per_s("audit"),
            "fewer, larger records; a second log with a writer of its own, by tenant",
        ),
        Wall(
            "NATS: one core of the server that leads all streams",
            "measured CPU time of a rotation",
            costs.full_per_s("NATS"),
            costs.most_per_s("NATS"),
            "more cores, which nats-server uses; streams led by different servers",
        ),
        Wall(
            f"PostgreSQL: CPU of {POSTGRES_CORES} cores, half busy",
            "measured CPU time of a rotation; cores assumed",
            POSTGRES_CORES * BUSY * costs.full_per_s("PostgreSQL"),
            POSTGRES_CORES * BUSY * costs.most_per_s("PostgreSQL"),
            "a server for each schema: no statement joins two of them",
        ),
        Wall(
            f"PostgreSQL: {WAL_OCTETS_PER_S / 1e6:.0f} MB/s of WAL",
            "measured WAL of a rotation; disk assumed",
            WAL_OCTETS_PER_S / costs.wal_octets,
            WAL_OCTETS_PER_S / costs.wal_octets,
            "a server for each schema",
        ),
    ]
    return sorted(found, key=lambda wall: wall.per_s)


def certificates_at(per_s: float) -> float:
    """Return the mixed fleet with that rate."""
    return per_s / _PER_CERTIFICATE_PER_S


def _gib(of: Stream) -> str:
    return f"{of.max_bytes / (1 << 30):.0f} GiB"
