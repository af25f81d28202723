"""Faults of drills that random runs do not do."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import signal
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from estcore.errors import ConfigurationError
from estsuite_testing.chaos.faults import member_again
from estsuite_testing.chaos.world import INSTANCES, World
from estsuite_testing.e2e_stack import ENROLL, make_csr

_DIES_WITHIN_S = 25.0
_DIED = 137
_IDLE, _IDLE_FROM = 200, "127.0.0.9"
_LARGE = 1 << 20


@asynccontextmanager
async def signer_dies(world: World, step: str) -> AsyncIterator[str]:
    """Every ca-signer ends at a step of an issuance, once, as if its machine had stopped."""
    instances = INSTANCES["ca-signer"]
    for instance in instances:
        world.environment[instance] = {"ESTSUITE_FAULT": f"{step}:exit:1"}
        world.end(instance, signal.SIGTERM)
    await _running(world, *instances)
    doomed = [world.suite.services[instance].process for instance in instances]
    world.expected |= {process.pid for process in doomed}
    try:
        yield f"ca-signer ends at {step}"
        async with asyncio.timeout(_DIES_WITHIN_S):
            while all(process.returncode is None for process in doomed):
                await asyncio.sleep(0.1)
        ended = [process.returncode for process in doomed if process.returncode is not None]
        if any(code != _DIED for code in ended):
            raise ConfigurationError(f"ca-signer ended with {ended}, not at {step}")
    except TimeoutError as exc:
        raise ConfigurationError(f"no ca-signer came to {step}") from exc
    finally:
        for instance in instances:
            del world.environment[instance]
        for process in doomed:
            if process.returncode is None:
                process.kill()
        world.over_s = time.monotonic()


async def _running(world: World, *instances: str) -> None:
    """Wait until the supervisor has started these again."""
    async with asyncio.timeout(60):
        while not all(world.is_running(instance) for instance in instances):
            await asyncio.sleep(0.1)


@asynccontextmanager
async def service_frozen(world: World, service: str, seconds: float) -> AsyncIterator[str]:
    """SIGSTOP of every process of a service: connected, and silent."""
    for instance in INSTANCES[service]:
        world.freeze(instance)
    try:
        yield f"SIGSTOP {', '.join(INSTANCES[service])} for {seconds:g} s"
        await asyncio.sleep(seconds)
    finally:
        for instance in INSTANCES[service]:
            world.freeze(instance, thaw=True)


@asynccontextmanager
async def rolling_restart(world: World) -> AsyncIterator[str]:
    """SIGTERM of every process in turn, the next when all are ready again, as in an update."""
    yield "SIGTERM of every process in turn"
    for instances in INSTANCES.values():
        for instance in instances:
            world.end(instance, signal.SIGTERM)
            await _running(world, instance)
            await world.until_ready(60)


@asynccontextmanager
async def nats_rolling_restart(world: World) -> AsyncIterator[str]:
    """Every member of NATS stopped in order and started again, in turn."""
    yield "every member of NATS restarted in turn"
    members = world.cluster.members
    for member in members:
        await member.stop(signal.SIGTERM)
        await member_again(world, member, over=member is members[-1])


@asynccontextmanager
async def nats_killed_whole(world: World, seconds: float) -> AsyncIterator[str]:
    """kill -9 of every member; the disks stay."""
    for member in world.cluster.members:
        await member.stop()
    try:
        yield f"kill -9 of all members for {seconds:g} s"
        await asyncio.sleep(seconds)
    finally:
        await member_again(world, *world.cluster.members)


@asynccontextmanager
async def stores_old(world: World, seconds: float) -> AsyncIterator[str]:
    """All members come back with the disks of some seconds ago: a power cut before fsync."""
    members = world.cluster.members
    for member in members:
        await member.stop()
        await asyncio.to_thread(shutil.copytree, member.store, _copy(member.store))
    await member_again(world, *members, over=False)
    yield f"all members killed, their disks as {seconds:g} s before"
    await asyncio.sleep(seconds)
    for member in members:
        await member.stop()
        member.wipe()
        copy = _copy(member.store)
        await asyncio.to_thread(shutil.copytree, copy, member.store, dirs_exist_ok=True)
        shutil.rmtree(copy)
    await member_again(world, *members)


def _copy(store: Path) -> Path:
    return store.with_name("copy")


@asynccontextmanager
async def bit_flipped(world: World) -> AsyncIterator[str]:
    """One bit in every block of messages of one member, flipped while it is stopped."""
    member = world.cluster.members[0]
    await member.stop()
    blocks = [path for path in member.store.glob("**/*.blk") if path.stat().st_size > 0]
    for path in blocks:
        octets = bytearray(path.read_bytes())
        octets[len(octets) // 2] ^= 1
        path.write_bytes(octets)
    try:
        yield f"a bit flipped in {len(blocks)} blocks of {member.name}"
    finally:
        await member_again(world, member)


@asynccontextmanager
async def table_locked(world: World, table: str, seconds: float) -> AsyncIterator[str]:
    """A session holds a table: statements wait until their timeout, and the pool is used up."""
    connection = await world.layout.postgres.superuser()
    try:
        async with connection.transaction():
            await connection.execute(f"lock table {table} in access exclusive mode")
            yield f"{table} locked for {seconds:g} s"
            await asyncio.sleep(seconds)
    finally:
        await connection.close()


@asynccontextmanager
async def descriptors_exhausted(world: World, service: str, seconds: float) -> AsyncIterator[str]:
    """Every process of a service can open no further file or connection."""
    limits = {}
    for instance in INSTANCES[service]:
        pid = world.suite.services[instance].process.pid
        used = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[pid][1]))
    try:
        yield f"no file descriptors left at {', '.join(INSTANCES[service])} for {seconds:g} s"
        await asyncio.sleep(seconds)
    finally:
        for pid, limit in limits.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


@asynccontextmanager
async def connections_idle(world: World, seconds: float) -> AsyncIterator[str]:
    """One source opens connections to each front end and sends nothing."""
    opened = []
    for port in world.ports.values():
        for _ in range(_IDLE):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(_IDLE_FROM, 0)
                )
                opened.append(writer)
    try:
        yield f"{len(opened)} silent connections of one source for {seconds:g} s"
        await asyncio.sleep(seconds)
    finally:
        for writer in opened:
            writer.transport.abort()


@asynccontextmanager
async def requests_hostile(world: World, seconds: float) -> AsyncIterator[str]:
    """Bodies that are no CSR, are cut short, or are far too large, at each front end.

    Raises:
        ConfigurationError: one was not refused with 4xx.
    """
    _, csr = make_csr("dev-hostile")
    bodies = [b"", b"!", b64encode(b"\x30\x84\xff\xff\xff\xff"), b64encode(csr[:-9]), b"A" * _LARGE]
    context = ssl.create_default_context(cafile=str(world.layout.root_file))
    headers = {
        "Content-Type": "application/pkcs10",
        "Authorization": aiohttp.encode_basic_auth("load", world.secret),
    }
    until, wrong = time.monotonic() + seconds, set()
    yield f"hostile bodies for {seconds:g} s"
    while time.monotonic() < until:
        for port in world.ports.values():
            for body in bodies:
                connector = aiohttp.TCPConnector(ssl=context, force_close=True)
                # A front end may end the connection before all of a large body was sent.
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with (
                        aiohttp.ClientSession(connector=connector) as session,
                        session.post(
                            f"https://localhost:{port}{ENROLL}", data=body, headers=headers
                        ) as answer,
                    ):
                        if answer.status // 100 != 4:
                            wrong.add(answer.status)
        await asyncio.sleep(0.2)
    if wrong:
        raise ConfigurationError(f"hostile bodies were answered {sorted(wrong)}")
