"""The drills, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from estsuite_testing.chaos import faults as random_faults
from estsuite_testing.chaos.faults import Fault
from estsuite_testing.chaos.world import World, is_root
from estsuite_testing.drills import faults
from estsuite_testing.drills.decided import Decided

_TEN_MINUTES = "+10m"


@dataclass(frozen=True)
class Drill:
    """One fault, and the time in which the suite has to be well after it."""

    name: str
    fault: Callable[[World], AbstractAsyncContextManager[str]]
    kind: str
    """Name of the fault in the history, as the search for losses knows it."""
    runbook: str = ""
    """Heading of the page that describes it."""
    within_s: float = 60.0
    """From the end of the fault: ready, and a new certificate issued, recorded and delivered."""
    root: bool = False
    """It needs file systems that only root can mount."""


def _chosen(
    name: str, fault: Fault, chosen: Decided, runbook: str = "", within_s: float = 60.0
) -> Drill:
    kind = str(getattr(fault, "__name__", name))
    root = fault in random_faults.MOUNTED
    return Drill(name, lambda world: fault(world, chosen), kind, runbook, within_s, root)


def _own(
    name: str,
    fault: Callable[..., AbstractAsyncContextManager[str]],
    *arguments: object,
    runbook: str = "",
    within_s: float = 60.0,
) -> Drill:
    call = partial(_called, fault, arguments)
    return Drill(name, call, fault.__name__, runbook, within_s)


def _called(
    fault: Callable[..., AbstractAsyncContextManager[str]],
    arguments: Sequence[object],
    world: World,
) -> AbstractAsyncContextManager[str]:
    return fault(world, *arguments)


_NATS, _STORES_NOTHING = "NATS is down", "NATS is connected and stores nothing"
_POSTGRES, _SIEM, _CLOCK = "PostgreSQL is down", "The SIEM is down", "A clock is wrong"
_AUDIT = "Audit does not keep up, or its stream is full"
_SIGNER, _SPOOL = "ca-signer is down", "The audit spool of a front end fills"

DRILLS: tuple[Drill, ...] = (
    *(
        _chosen(f"{service} killed", random_faults.service_killed, Decided(service, likely=True))
        for service in ("est-frontend", "ca-signer", "renewal", "audit")
    ),
    _chosen("one ca-signer killed", random_faults.service_killed, Decided("ca-signer")),
    *(
        _own(f"ca-signer dies at {step}", faults.signer_dies, f"signer.{step}")
        for step in ("4.decided", "5.recorded", "8.signed", "9.stored", "10.announced")
    ),
    _own("ca-signer frozen", faults.service_frozen, "ca-signer", 12.0, runbook=_SIGNER),
    _own("audit frozen", faults.service_frozen, "audit", 12.0, runbook=_AUDIT),
    _own("renewal frozen", faults.service_frozen, "renewal", 12.0),
    _own("rolling restart", faults.rolling_restart),
    # Shorter than the patience of who asks for the CA certificates, eight seconds.
    _own("file descriptors", faults.descriptors_exhausted, "est-frontend", 6.0),
    _own("idle connections", faults.connections_idle, 8.0),
    _own("hostile requests", faults.requests_hostile, 6.0),
    _chosen("NATS member killed", random_faults.nats_killed, Decided()),
    _chosen("NATS member wiped", random_faults.nats_killed, Decided(likely=True)),
    _chosen("NATS lame duck", random_faults.nats_lame_duck, Decided(seconds=6)),
    _chosen("NATS member frozen", random_faults.nats_frozen, Decided(seconds=10)),
    _own("NATS rolling restart", faults.nats_rolling_restart),
    _chosen(
        "NATS without quorum",
        random_faults.nats_without_quorum,
        Decided(seconds=20),
        _STORES_NOTHING,
    ),
    _own("NATS down", faults.nats_killed_whole, 15.0, runbook=_NATS),
    _chosen("NATS half-open", random_faults.nats_silent, Decided(seconds=30), _NATS),
    _chosen("NATS slow", random_faults.nats_slow, Decided(seconds=6)),
    _own("NATS bit flipped", faults.bit_flipped),
    _own("NATS disks old", faults.stores_old, 6.0, within_s=120.0),
    _chosen("NATS disks lost", random_faults.streams_lost, Decided(seconds=6), _NATS, 120.0),
    _chosen("NATS disk full", random_faults.disk_full, Decided(seconds=12)),
    _chosen("spool disk full", random_faults.disk_full, Decided(None, seconds=12), _SPOOL),
    _chosen("PostgreSQL crash", random_faults.postgres_crashed, Decided(seconds=10), _POSTGRES),
    _chosen("PostgreSQL half-open", random_faults.postgres_silent, Decided(seconds=25), _POSTGRES),
    _chosen("PostgreSQL slow", random_faults.postgres_slow, Decided(seconds=6)),
    _chosen(
        "PostgreSQL read-only", random_faults.postgres_read_only, Decided(seconds=15), _POSTGRES
    ),
    _chosen("COMMIT unanswered", random_faults.commit_unanswered, Decided(seconds=4)),
    _chosen("sessions ended", random_faults.sessions_ended, Decided()),
    _own("ledger locked", faults.table_locked, "ca_signer.issuance", 12.0),
    *(
        _chosen(
            f"inserts refused by {service}",
            random_faults.inserts_refused,
            Decided(table, seconds=8),
        )
        for service, table in (
            ("ca-signer", "ca_signer.issuance"),
            ("audit", "audit.record"),
            ("renewal", "renewal.certificate"),
        )
    ),
    _chosen("SIEM down", random_faults.siem_down, Decided(seconds=8), _SIEM),
    _chosen(
        "receivers unreachable",
        random_faults.receiver_unreachable,
        Decided("down", "certificate expired", seconds=8),
        _SIEM,
    ),
    _chosen("receivers refuse", random_faults.receiver_refusing, Decided("400", "partial", seconds=8)),
    _chosen(
        "clock of ca-signer",
        random_faults.clock_wrong,
        Decided("ca-signer", _TEN_MINUTES, seconds=12),
        _CLOCK,
    ),
    _chosen(
        "clock of est-frontend",
        random_faults.clock_wrong,
        Decided("est-frontend", "-10m", seconds=12),
        _CLOCK,
    ),
)  # fmt: skip


def select(word: str | None) -> list[Drill]:
    """Return the drills whose name contains a word; those that this account can do."""
    possible = [drill for drill in DRILLS if is_root() or not drill.root]
    return [drill for drill in possible if word is None or word.lower() in drill.name.lower()]
