"""What NATS users of agents cost nats-server: one user for each service, one connection an agent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import nats
from nats.aio.client import Client
from pydantic import BaseModel, ConfigDict

from estbench.processes import cpu_s
from estcore.messages import permissions
from estdev.layout import nats_users
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port

SIZES = (300, 1_000, 3_000)
CONNECTIONS = 500
_SETTLE_S = 2.0


class UsersCost(BaseModel):
    """A server with users for that many services."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: int
    configuration_octets: int
    start_cpu_s: float
    """CPU time of nats-server until it listens: it reads the configuration."""
    memory_mb: float
    """Resident, before an agent connects."""
    connection_kb: float
    """Resident memory of a connection of an agent with its subscription."""


async def measure(folder: Path, services: int) -> UsersCost:
    """Start a server with that many users, and let some of them connect."""
    agents = {f"agent-{n}": permissions.agent("clinic", f"service-{n}") for n in range(services)}
    folder.mkdir(exist_ok=True)
    server = EmbeddedNATS(folder, free_port(), {**nats_users(), **agents})
    connections = min(services, CONNECTIONS)
    await server.start()
    start_cpu_s = cpu_s(server.pid)
    clients: list[Client] = []
    try:
        await asyncio.sleep(_SETTLE_S)
        alone = _resident(server.pid)
        for n in range(connections):
            client = await nats.connect(
                server.url, nkeys_seed=str(server.seed_file(f"agent-{n}")), connect_timeout=10
            )
            await client.subscribe(f"pki.rotation.*.clinic.service-{n}")
            clients.append(client)
        await asyncio.sleep(_SETTLE_S)
        each = (_resident(server.pid) - alone) / connections
    finally:
        for client in clients:
            await client.close()
        await server.stop()
    return UsersCost(
        services=services,
        configuration_octets=server.config_file.stat().st_size,
        start_cpu_s=round(start_cpu_s, 2),
        memory_mb=round(alone / 1e6, 1),
        connection_kb=round(each / 1e3, 1),
    )


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
