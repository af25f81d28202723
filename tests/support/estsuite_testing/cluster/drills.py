"""Faults of pods, one at a time under light load, and what is seen, lost and needed after each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from estsuite_testing.cluster.drill_report import Result
from estsuite_testing.cluster.installation import (
    SERVERS,
    SERVICES,
    Installation,
    names_of,
    until,
)
from estsuite_testing.cluster.load import Client, Load
from estsuite_testing.cluster.records import in_ledger, in_log, in_slots

Fault = Callable[[Installation], Awaitable[None]]
_CALM_S, _LOOK_S = 2.0, 0.5
_AWAY_S = 20.0
_GIVE_UP_S = 300.0


@dataclass(frozen=True)
class Drill:
    """One fault, and the time in which the suite has to be well after it."""

    name: str
    what: str
    fault: Fault
    """Does it; it is over when this returns."""
    within_s: float = 120.0


def _killed(name: str) -> Fault:
    """Every pod of a service or server is deleted without notice."""

    async def fault(cluster: Installation) -> None:
        pods = names_of(await cluster.pods(name))
        await cluster.kubectl("delete", "pod", *pods, "--grace-period=0", "--force")

    return fault


def _away(name: str, kind: str, *place: str) -> Fault:
    async def fault(cluster: Installation) -> None:
        scale = ("scale", *place, f"{kind}/{name}")
        before = (await cluster.get(kind, name, *place))["spec"]["replicas"]
        await cluster.kubectl(*scale, "--replicas=0")
        await asyncio.sleep(_AWAY_S)
        await cluster.kubectl(*scale, f"--replicas={before}")

    return fault


async def _restarted(cluster: Installation) -> None:
    names = [f"deployment/{name}" for name in SERVICES]
    await cluster.kubectl("rollout", "restart", *names)
    for name in names:
        await cluster.kubectl("rollout", "status", name, "--timeout=240s", timeout_s=250)


async def _image_missing(cluster: Installation) -> None:
    names = [f"deployment/{name}" for name in SERVICES]
    for name in names:
        await cluster.kubectl("set", "image", name, "*=estsuite/missing:0.0.0")
    await asyncio.sleep(_AWAY_S)
    await cluster.kubectl("rollout", "undo", *names)


async def _streams_lost(cluster: Installation) -> None:
    """NATS comes back with an empty volume; the migration declares its streams anew."""
    await cluster.kubectl("scale", "statefulset/nats", "--replicas=0")
    await cluster.kubectl("wait", "--for=delete", "pod/nats-0", "--timeout=60s")
    await cluster.kubectl("delete", "pvc", "data-nats-0")
    await cluster.kubectl("scale", "statefulset/nats", "--replicas=1")
    await cluster.ready("nats")
    await cluster.migrate(f"migrate-streams-{int(time.time())}")


async def _ledger_locked(cluster: Installation) -> None:
    lock = "begin; lock table ca_signer.issuance in exclusive mode; select pg_sleep(12)"
    await cluster.psql(lock)


def _drills() -> tuple[Drill, ...]:
    killed = "every pod deleted without notice"
    seconds = f"for {_AWAY_S:.0f} s"
    return (
        *(Drill(f"{name} killed", killed, _killed(name)) for name in SERVICES),
        Drill("rolling restart", "rollout restart of the four services", _restarted),
        Drill("image missing", f"an image that is not there, {seconds}", _image_missing),
        Drill("NATS killed", killed, _killed("nats")),
        Drill("NATS away", f"no pod {seconds}", _away("nats", "statefulset")),
        Drill("NATS volume lost", "an empty volume, then the migration", _streams_lost),
        Drill("PostgreSQL killed", killed, _killed("postgres")),
        Drill("PostgreSQL away", f"no pod {seconds}", _away("postgres", "statefulset")),
        Drill("ledger locked", "ca_signer.issuance locked for 12 s", _ledger_locked),
        Drill(
            "cluster DNS away",
            f"no pod of CoreDNS {seconds}",
            _away("coredns", "deployment", "-n", "kube-system"),
        ),
    )


DRILLS = _drills()


@dataclass
class _Watch:
    """Which services and servers were not as many and as ready as they should be."""

    cluster: Installation
    not_ready: set[str] = field(default_factory=set)
    ready_since: float | None = None

    async def run(self) -> None:
        while True:
            unready = await self.look()
            self.not_ready |= unready
            if unready:
                self.ready_since = None
            elif self.ready_since is None:
                self.ready_since = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> set[str]:
        found = await self.cluster.get("deployments,statefulsets")
        unready = set()
        for item in found["items"]:
            name, wanted = item["metadata"]["name"], item["spec"]["replicas"]
            if name not in (*SERVICES, *SERVERS):
                continue
            status = item["status"]
            counts = {status.get("readyReplicas", 0), status.get("replicas", 0)}
            observed = status.get("observedGeneration") == item["metadata"]["generation"]
            if counts != {wanted} or not wanted or not observed:
                unready.add(name)
        return unready


async def perform(drill: Drill, cluster: Installation, client: Client) -> Result:
    """Do one drill, wait until everything is well, and look for what is missing."""
    watch = _Watch(cluster)
    await until(lambda: _well(watch), 180, "everything is well before the drill")
    watching = asyncio.create_task(watch.run())
    load = Load(client, per_second=2)
    try:
        async with load:
            await asyncio.sleep(_CALM_S)
            load.answers.clear()
            begun = time.monotonic()
            await drill.fault(cluster)
            over = time.monotonic()
            enrolled, recorded = await _enrolled(cluster, client)
            ready = await _ready(watch)
    finally:
        watching.cancel()
    cluster.received(load.serials)
    return Result(
        name=drill.name,
        what=drill.what,
        lasted_s=round(over - begun, 1),
        within_s=drill.within_s,
        certificates=len(load.serials) + 1,
        answers=dict(load.answers),
        longest_s=round(load.longest_s, 1),
        not_ready=sorted(watch.not_ready),
        ready_s=round(max(ready - over, 0.0), 1),
        enrolled_s=round(enrolled - over, 1),
        recorded_s=round(recorded - over, 1),
        lost=await _lost(cluster, load.serials),
    )


async def _well(watch: _Watch) -> bool:
    return not await watch.look()


async def _ready(watch: _Watch) -> float:
    """Return since when everything is ready."""
    # Once more after the audit log answered: a pod may have failed its probe late.
    await asyncio.sleep(3 * _LOOK_S)

    async def since() -> bool:
        return watch.ready_since is not None

    await until(since, _GIVE_UP_S, "every pod ready", every_s=_LOOK_S)
    assert watch.ready_since is not None
    return watch.ready_since


async def _enrolled(cluster: Installation, client: Client) -> tuple[float, float]:
    """Return when a client that begins now has a certificate, and when that is in the audit log."""
    load = Load(client, per_second=1)
    serial = await load.one()
    enrolled = time.monotonic()
    cluster.received([serial])
    search = ("est-audit", "search", "--serial", f"{serial:x}", "--action", "certificate.issue")

    async def there() -> bool:
        command = ("exec", "deployment/audit", "--", *search, "--outcome", "success")
        done = await cluster.kubectl(*command, "--format", "json", check=False)
        return done.returncode == 0 and b"certificate.issue" in done.stdout

    await until(there, _GIVE_UP_S, f"{serial:x} is in the audit log", every_s=_LOOK_S)
    return enrolled, time.monotonic()


async def _lost(cluster: Installation, serials: list[int]) -> dict[str, list[str]]:
    """Return serial numbers that are missing, after a time for renewal and audit to have them."""
    readers = {"ledger": in_ledger, "slots": in_slots, "log": in_log}
    missing = {kind: {*serials} for kind in readers}

    async def complete() -> bool:
        for kind, read in readers.items():
            if missing[kind]:
                missing[kind] -= await read(cluster, missing[kind])
        return not any(missing.values())

    with suppress(AssertionError):
        await until(complete, 60, "everything is on record", every_s=3)
    return {kind: sorted(f"{serial:x}" for serial in found) for kind, found in missing.items()}
