"""10,000 agents that ask one front end for renewal information: CPU time and latency of a poll.

"new" is what ``estctl agent`` does: a TLS connection for each poll, without a client certificate.
"kept" has a connection for each client, all open at the same time, as clients in other languages
may do. Each agent asks for a certificate of its own. Paces are far above those of agents, which ask
every six hours, so that CPU time is that of polls and not of an idle process.
"""

from __future__ import annotations

import asyncio
import random
import resource
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from estbench.processes import cpu_s, pss_mb
from estcore.est.renewal_info import CertificateId
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite
from renewal_info import certificates, publish, until_read
from renewalbench.results import PollRow, Polls, conditions, quantile

_NEW_PER_S, _KEPT_PER_S = 200, 500
_SETTLE_S = 2.0
_IDLE_S = 10.0
_ANSWER_S = 10.0


async def measure(
    folder: Path, agents: int, seconds: int, progress: Callable[[str], object]
) -> Polls:
    """Start a suite, give a front end that many certificates, and poll."""
    found = conditions()
    _allow_files(agents + 1000)
    ports = Ports.free()
    ports.choose()
    layout = Layout(folder / "suite", ports)
    listen = {
        "max_connections": agents + 1000,
        "max_connections_per_source": agents + 1000,  # all agents are on this machine
        "idle_timeout_s": 600,
    }
    layout.overrides = {"est-frontend": {"listen": listen}}
    suite = LocalSuite(layout)
    try:
        await suite.start()
        ids = certificates(agents)
        await publish(suite, ids)
        await until_read(suite, agents)
        clients = Agents(suite, ids)
        rows = []
        for kind in ("new", "kept"):
            rows.append(await clients.poll(kind, seconds))
            progress(str(rows[-1]))
    finally:
        await suite.stop()
    return Polls(**found, agents=agents, rows=rows)


class Agents:
    """Clients of one front end, each with the id of its certificate."""

    def __init__(self, suite: LocalSuite, ids: list[CertificateId]) -> None:
        self._port = suite.layout.ports.est
        self._ids = ids
        self._pid = suite.services["est-frontend"].process.pid
        self._context = ssl.create_default_context(cafile=str(suite.layout.root_file))
        self._took: list[float] = []

    async def poll(self, kind: str, seconds: int) -> PollRow:
        """Let all agents poll for so long; every answer must be 200."""
        kept = await self._connections() if kind == "kept" else []
        await asyncio.sleep(_SETTLE_S)
        idle = await self._idle()
        self._took = []
        rate = _KEPT_PER_S if kept else _NEW_PER_S
        order = random.sample(range(len(self._ids)), len(self._ids))
        used, began = cpu_s(self._pid), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(rate * seconds):
                agent = order[number % len(order)]
                ask = self._kept(agent, kept[agent]) if kept else self._new(agent)
                group.create_task(ask)
                await asyncio.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
        took_s = time.monotonic() - began
        used = cpu_s(self._pid) - used - idle * took_s
        memory = pss_mb(self._pid)
        for _, writer in kept:
            writer.close()
        return PollRow(
            connections=kind,
            open_at_once=len(kept),
            polls=len(self._took),
            per_s=round(len(self._took) / took_s),
            cpu_us=round(used / len(self._took) * 1e6),
            p50_ms=round(quantile(self._took, 0.5) * 1000, 1),
            p99_ms=round(quantile(self._took, 0.99) * 1000, 1),
            memory_mb=round(memory),
        )

    async def _connections(self) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open one for each agent, some at a time; each has asked once."""
        places = asyncio.Semaphore(50)

        async def one(agent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            async with places:
                connection = await self._connect()
                await self._ask(agent, *connection, close=False)
                return connection

        return await asyncio.gather(*(one(agent) for agent in range(len(self._ids))))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
        )

    async def _idle(self) -> float:
        """Return what the front end uses a second while nothing is asked."""
        used = cpu_s(self._pid)
        await asyncio.sleep(_IDLE_S)
        return (cpu_s(self._pid) - used) / _IDLE_S

    async def _new(self, agent: int) -> None:
        async with asyncio.timeout(_ANSWER_S):
            began = time.monotonic()
            reader, writer = await self._connect()
            await self._ask(agent, reader, writer, close=True)
            self._took.append(time.monotonic() - began)
            writer.close()

    async def _kept(
        self, agent: int, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        async with asyncio.timeout(_ANSWER_S):
            began = time.monotonic()
            await self._ask(agent, *connection, close=False)
            self._took.append(time.monotonic() - began)

    async def _ask(
        self,
        agent: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        close: bool,
    ) -> None:
        ending = "Connection: close\r\n" if close else ""
        target = f"/.well-known/est/renewal-info/{self._ids[agent]}"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{ending}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if not head.startswith("HTTP/1.1 200 "):
            raise RuntimeError(head)
        (length,) = (
            line.split(":")[1]
            for line in head.lower().splitlines()
            if line.startswith("content-length:")
        )
        body = await reader.readexactly(int(length))
        if b"suggestedWindow" not in body:
            raise RuntimeError(body.decode())


def _allow_files(count: int) -> None:
    """Let this process, and those it starts, open so many files at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
