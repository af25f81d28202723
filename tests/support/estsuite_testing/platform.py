"""A PostgreSQL and a NATS with every schema, role and user of the suite."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from estcore.messages import permissions
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings, DatabaseSettings
from estdev.nats import EmbeddedNATS
from estdev.postgres import EmbeddedPostgres, Role
from estsuite_testing.servers import make_nats, make_postgres

ISSUERS = ("issuing", "corporate")
"""Issuers that the platform's front ends may ask."""
SERVICES = ("ca-signer", "renewal", "audit")


@dataclass
class Platform:
    """A PostgreSQL and a NATS with every role and user of the suite."""

    postgres: EmbeddedPostgres
    nats: EmbeddedNATS
    roles: dict[str, Role]

    def bus(self, user: str) -> BusSettings:
        """Return how ``user`` reaches NATS (with the right to migrate)."""
        return BusSettings(
            url=self.nats.url,
            nkey_seed_file=self.nats.seed_file(user),
            migration_nkey_seed_file=self.nats.seed_file("migrate"),
            senders_file=self.nats.senders_file,
        )

    async def provisioner(self) -> Bus:
        """Connect as the user that may declare streams and consumers."""
        settings = self.bus("ca-signer")
        seed = self.nats.seed_file("migrate").read_text().strip()
        return await Bus.connect(settings, "migrate", "test", seed=seed)

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[Bus]:
        """Connect as a user that may do everything on NATS, as no service may."""
        seed = self.nats.seed_file("administrator").read_text().strip()
        settings = self.bus("ca-signer")
        bus = await Bus.connect(settings, "administrator", "test", seed=seed, signs=False)
        try:
            yield bus
        finally:
            await bus.close()

    async def delete_stream(self, name: str) -> None:
        """Delete a stream with everything in it."""
        async with self.administrator() as bus:
            await bus.client.jetstream().delete_stream(name)

    async def purge_stream(self, name: str) -> None:
        """Remove what a stream holds, also what was delivered and not acknowledged."""
        async with self.administrator() as bus:
            await bus.client.jetstream().purge_stream(name)

    async def stored_messages(self) -> dict[str, int]:
        """Return how many messages each stream holds."""
        async with self.administrator() as bus:
            streams = await bus.client.jetstream().streams_info()
        return {str(s.config.name): s.state.messages for s in streams}

    def database(self, service: str) -> DatabaseSettings:
        """Return how a service reaches its schema (with the owner's access to migrate)."""
        role = self.roles[service]
        return DatabaseSettings(
            url=self.postgres.url(role.runtime),
            password_file=role.runtime_password_file,
            migration_url=self.postgres.url(role.owner),
            migration_password_file=role.owner_password_file,
        )


@contextmanager
def running_platform(folder: Path) -> Iterator[Platform]:
    """Start both servers in the folder; stop and remove them at the end."""
    postgres = make_postgres(folder)
    nats = make_nats(
        folder,
        {
            "migrate": permissions.provisioner(),
            "est-frontend": permissions.frontend("default"),
            "ca-signer": permissions.signer(),
            "ca-signer-upstream": permissions.upstream(["corporate"]),
            "renewal": permissions.renewal(),
            "audit": permissions.audit(),
            "operator": permissions.operator(),
            "agent": permissions.agent("demo", "web"),
            "administrator": Permissions(account=STREAMS_ACCOUNT, publish=(">",), subscribe=(">",)),
        },
    )
    nats.serve_issuers(ISSUERS)
    asyncio.run(postgres.start())
    try:
        roles = asyncio.run(postgres.provision(SERVICES))
        asyncio.run(nats.start())
        yield Platform(postgres, nats, roles)
    finally:
        asyncio.run(nats.stop(kill=True))
        asyncio.run(postgres.stop(immediate=True))
        shutil.rmtree(postgres.home, ignore_errors=True)
