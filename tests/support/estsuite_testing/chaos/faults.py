"""The faults, and the schedule that a seed makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from estcore.errors import ConfigurationError
from estsuite_testing.chaos.history import History
from estsuite_testing.chaos.nats_cluster import Member
from estsuite_testing.chaos.receivers import REFUSING, UNREACHABLE
from estsuite_testing.chaos.world import (
    ROLES,
    World,
    is_root,
    libfaketime,
)
from estsuite_testing.debian import debian_packages

Fault = Callable[[World, random.Random], AbstractAsyncContextManager[str]]
"""Begins when it is entered and is over when it is left; yields what it does, in words."""

_EVERYTHING = [
    instance
    for service in ("ca-signer", "audit", "renewal", "est-frontend")
    for instance in (service, f"{service}-2")
]
_SHORT_S, _LONG_S = (1.0, 4.0), (4.0, 12.0)


async def _last(chosen: random.Random, bounds: tuple[float, float]) -> None:
    await asyncio.sleep(chosen.uniform(*bounds))


@asynccontextmanager
async def service_killed(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """kill -9 of one process, or of all of a service."""
    service = chosen.choice([*ROLES, "est-frontend"])
    instances = (
        [service, f"{service}-2"]
        if chosen.random() < 0.3
        else [chosen.choice([service, f"{service}-2"])]
    )
    for instance in instances:
        world.end(instance, signal.SIGKILL)
    yield f"kill -9 {', '.join(instances)}"


@asynccontextmanager
async def service_stopped(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """SIGTERM, as a rollout sends it."""
    instance = chosen.choice(_EVERYTHING)
    world.end(instance, signal.SIGTERM)
    yield f"SIGTERM {instance}"


@asynccontextmanager
async def service_frozen(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """SIGSTOP for longer than the lease of an intent: its late writes must not count."""
    instance = chosen.choice(_EVERYTHING)
    world.freeze(instance)
    try:
        yield f"SIGSTOP {instance}"
        await _last(chosen, _LONG_S)
    finally:
        world.freeze(instance, thaw=True)


def _member(world: World, chosen: random.Random) -> Member:
    return chosen.choice(world.cluster.members)


async def member_again(world: World, *members: Member, over: bool = True) -> None:
    """Start members that are down, and wait for the cluster; ``over``: this ends the fault."""
    if over:
        world.over_s = time.monotonic()
    for member in members:
        if member.process is None:
            member.start()
    with contextlib.suppress(ConfigurationError):  # the check at the end says if it stays so
        await world.cluster.until_healthy(20)


@asynccontextmanager
async def nats_killed(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """kill -9 of one member, with or without its disk."""
    member, wiped = _member(world, chosen), chosen.random() < 0.4
    await member.stop()
    if wiped:
        member.wipe()
    try:
        yield f"kill -9 {member.name}{', disk lost' if wiped else ''}"
        await _last(chosen, _SHORT_S)
    finally:
        await member_again(world, member)


@asynccontextmanager
async def nats_lame_duck(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """A member that leaves in order: it sends its clients away, then ends."""
    member = _member(world, chosen)
    member.signal(signal.SIGUSR2)
    try:
        yield f"lame duck mode of {member.name}"
        await _last(chosen, _LONG_S)
    finally:
        await member.stop()
        await member_again(world, member)


@asynccontextmanager
async def nats_frozen(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """SIGSTOP of one member."""
    member = _member(world, chosen)
    member.signal(signal.SIGSTOP)
    try:
        yield f"SIGSTOP {member.name}"
        await _last(chosen, _LONG_S)
    finally:
        member.signal(signal.SIGCONT)


@asynccontextmanager
async def nats_without_quorum(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Two of three members dead: nothing is stored until one is back."""
    members = chosen.sample(world.cluster.members, 2)
    for member in members:
        await member.stop()
    try:
        yield f"kill -9 {' and '.join(m.name for m in members)}"
        await _last(chosen, _SHORT_S)
    finally:
        await member_again(world, *members)


@asynccontextmanager
async def nats_silent(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Half-open connections: every member reachable, nothing comes through."""
    for member in world.cluster.members:
        member.proxy.hold()
    try:
        yield "connections to NATS half-open"
        await _last(chosen, _LONG_S)
    finally:
        for member in world.cluster.members:
            member.proxy.release()


@asynccontextmanager
async def nats_slow(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """A fifth of a second in each direction."""
    for member in world.cluster.members:
        member.proxy.delay_s = 0.2
    try:
        yield "NATS 0.2 s further away"
        await _last(chosen, _LONG_S)
    finally:
        for member in world.cluster.members:
            member.proxy.release()


@asynccontextmanager
async def streams_lost(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Every disk of NATS lost, and the runbook followed: migrate, nothing else."""
    members = world.cluster.members
    for member in members:
        await member.stop()
        member.wipe()
    try:
        yield "all streams lost"
        await _last(chosen, _SHORT_S)
    finally:
        await member_again(world, *members)
        await _migrate(world)


async def _migrate(world: World) -> None:
    for service in ROLES:
        config = str(world.layout.config_file(service))
        for _ in range(10):  # the new cluster has no leader at first, and PostgreSQL may be down
            try:
                await world.suite.command(service, "migrate", "--config", config)
                break
            except ConfigurationError:
                await asyncio.sleep(2)
        else:
            raise ConfigurationError(f"{service} migrate does not succeed")


@asynccontextmanager
async def postgres_crashed(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """An immediate shutdown, as after a crash; up again after a moment."""
    await world.layout.postgres.stop(immediate=True)
    try:
        yield "PostgreSQL crashed"
        await _last(chosen, _SHORT_S)
    finally:
        world.over_s = time.monotonic()
        await world.layout.postgres.start()


@asynccontextmanager
async def postgres_silent(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Half-open connections to PostgreSQL."""
    world.database.hold()
    try:
        yield "connections to PostgreSQL half-open"
        await _last(chosen, _LONG_S)
    finally:
        world.database.release()


@asynccontextmanager
async def postgres_slow(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """A fifth of a second in each direction."""
    world.database.delay_s = 0.2
    try:
        yield "PostgreSQL 0.2 s further away"
        await _last(chosen, _LONG_S)
    finally:
        world.database.release()


@asynccontextmanager
async def commit_unanswered(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """The connection is reset when COMMIT was sent: its outcome is unknown to who sent it."""
    world.database.reset_after = b"COMMIT"
    try:
        yield "reset after COMMIT"
        await _last(chosen, _SHORT_S)
    finally:
        world.database.release()


@asynccontextmanager
async def postgres_read_only(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """As a standby before it is promoted, or a server that protects its disk."""
    await _superuser(world, "alter system set default_transaction_read_only = on")
    try:
        yield "PostgreSQL read-only"
        await _last(chosen, _LONG_S)
    finally:
        await _superuser(world, "alter system reset default_transaction_read_only")


async def _superuser(world: World, *statements: str) -> None:
    connection = await connect(world)
    try:
        await connection.execute("set default_transaction_read_only = off")
        for statement in (*statements, "select pg_reload_conf()"):
            await connection.execute(statement)
    finally:
        await connection.close()


async def connect(world: World) -> asyncpg.Connection:
    """Connect as superuser, once PostgreSQL is up: another fault may have it down."""
    for _ in range(100):
        try:
            return await world.layout.postgres.superuser()
        except (OSError, asyncpg.PostgresError, TimeoutError):
            await asyncio.sleep(0.3)
    raise ConfigurationError("PostgreSQL does not come back")


_TABLES = ("ca_signer.issuance", "audit.record", "renewal.certificate")


@asynccontextmanager
async def inserts_refused(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Every insert into one table raises an error that no driver knows."""
    table = chosen.choice(_TABLES)
    name = f"chaos_{table.partition('.')[2]}"
    await _superuser(
        world,
        f"create or replace function public.{name}() returns trigger language plpgsql as "
        f"$$ begin raise exception 'refused by a fault'; end $$",
        f"create trigger {name} before insert on {table} "
        f"for each row execute function public.{name}()",
    )
    try:
        yield f"inserts into {table} refused"
        await _last(chosen, _LONG_S)
    finally:
        await _superuser(world, f"drop trigger {name} on {table}", f"drop function public.{name}()")


@asynccontextmanager
async def sessions_ended(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """All sessions of the services ended, several times."""
    yield "sessions of PostgreSQL ended"
    for _ in range(chosen.randint(1, 4)):
        await _superuser(
            world,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where usename in ('ca_signer', 'audit', 'renewal')",
        )
        await asyncio.sleep(0.5)


@asynccontextmanager
async def siem_down(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """The receiver is not there."""
    siem = world.suite.siem
    assert siem is not None
    await siem.stop()
    try:
        yield "SIEM down"
        await _last(chosen, _LONG_S)
    finally:
        await siem.start()


async def _receivers_broken(
    world: World, chosen: random.Random, modes: Sequence[str]
) -> AsyncIterator[str]:
    """Two receivers broken in different ways; the other sinks have to be untouched."""
    receivers, ways = chosen.sample(world.receivers, 2), chosen.sample(modes, 2)
    async with contextlib.AsyncExitStack() as stack:
        for receiver, mode in zip(receivers, ways, strict=True):
            await stack.enter_async_context(receiver.broken(mode))
        yield ", ".join(f"{r.kind} {m}" for r, m in zip(receivers, ways, strict=True))
        await _last(chosen, _LONG_S)


@asynccontextmanager
async def receiver_unreachable(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Receivers that are down, slow, reset connections, or whose certificate has expired."""
    async for text in _receivers_broken(world, chosen, UNREACHABLE):
        yield text


@asynccontextmanager
async def receiver_refusing(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """Receivers that refuse all for now, all for good, or a part."""
    async for text in _receivers_broken(world, chosen, REFUSING):
        yield text


@asynccontextmanager
async def clock_wrong(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """One process is started with a clock that is ten minutes or two hours off."""
    instance = chosen.choice(_EVERYTHING)
    offset = chosen.choice(["+10m", "-10m", "-2h", "+2h"])
    root = await asyncio.to_thread(debian_packages, "libfaketime")
    world.environment[instance] = libfaketime(root, offset)
    world.end(instance, signal.SIGTERM)
    try:
        yield f"clock of {instance} {offset}"
        await _last(chosen, (6.0, 12.0))
    finally:
        del world.environment[instance]
        world.end(instance, signal.SIGTERM)


@asynccontextmanager
async def disk_full(world: World, chosen: random.Random) -> AsyncIterator[str]:
    """A disk of NATS or of a front end's spool has no room for a while; then NATS is restarted."""
    victim = chosen.choice([*world.cluster.members, None])
    name = "the spools" if victim is None else victim.name
    ballast = (world.spool() if victim is None else victim.store) / "ballast"
    await asyncio.to_thread(_fill, ballast)
    try:
        yield f"disk of {name} full"
        await _last(chosen, _LONG_S)
    finally:
        ballast.unlink(missing_ok=True)
        if victim is not None:
            await victim.stop()
            await member_again(world, victim)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


COMMON: tuple[Fault, ...] = (
    service_killed,
    service_stopped,
    service_frozen,
    nats_killed,
    nats_lame_duck,
    nats_frozen,
    nats_without_quorum,
    nats_silent,
    nats_slow,
    postgres_crashed,
    postgres_silent,
    postgres_slow,
    commit_unanswered,
    postgres_read_only,
    inserts_refused,
    sessions_ended,
    siem_down,
    receiver_unreachable,
    receiver_refusing,
    clock_wrong,
    streams_lost,
)
MOUNTED: tuple[Fault, ...] = (disk_full,)
"""Faults for which file systems of limited size are mounted, as only root can."""


def _subject(fault: Fault) -> str:
    """What a fault is done to: of two at once each has a different subject."""
    word = str(getattr(fault, "__name__", "")).partition("_")[0]
    return _SUBJECTS.get(word, word)


_SUBJECTS = {
    **dict.fromkeys(("commit", "inserts", "sessions"), "postgres"),
    **dict.fromkeys(("streams", "disk"), "nats"),
    "clock": "service",
}


@dataclass(kw_only=True)
class Nemesis:
    """Does one fault after the other, or two at once, chosen and timed by the seed."""

    world: World
    history: History
    seed: int
    calm_s: tuple[float, float] = (1.5, 5.0)
    pairs: float = 0.3

    async def run(self, stop: asyncio.Event) -> None:
        """Do faults until ``stop``; each is over when this returns.

        Every kind is done once before any is done twice.
        """
        chosen = random.Random(self.seed)
        known = [*COMMON, *(MOUNTED if is_root() else ())]
        left: list[Fault] = []
        while not stop.is_set():
            await asyncio.sleep(chosen.uniform(*self.calm_s))
            if stop.is_set():
                return
            if not left:
                left = [*known]
                chosen.shuffle(left)
            faults = [left.pop(0)]
            if chosen.random() < self.pairs:
                others = [f for f in left if _subject(f) != _subject(faults[0])]
                faults += others[:1]
                left = [f for f in left if f not in faults]
            seeds = [chosen.getrandbits(32) for _ in faults]
            await asyncio.gather(
                *(self._do(f, random.Random(s)) for f, s in zip(faults, seeds, strict=True))
            )

    async def _do(self, fault: Fault, chosen: random.Random) -> None:
        name = str(getattr(fault, "__name__", fault))
        async with fault(self.world, chosen) as text:
            self.history.note("begin", fault=name, what=text)
        self.history.note("end", fault=name, what=text)
