"""A NATS server with the accounts of every service, and thieves of their NKeys."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estcore.messages import permissions, topics
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.nats_client import Client, nats
from estcore.runtime.settings import BusSettings
from estcore.runtime.topology import declare
from estdev.nats import EmbeddedNATS
from estsuite_testing.servers import make_nats

SERVICES: dict[str, Permissions] = {
    "est-frontend": permissions.frontend("default"),
    "est-frontend-b": permissions.frontend("b"),
    "ca-signer": permissions.signer(),
    "ca-signer-upstream": permissions.upstream(["corporate"]),
    "check-store": permissions.check_store(),
    "renewal": permissions.renewal(),
    "audit": permissions.audit(),
    "operator": permissions.operator(),
    "agent": permissions.agent("demo", "web"),
}
EVERYTHING = (">",)
NOSY = {
    f"nosy-{name}": Permissions(account=rights.account, publish=EVERYTHING, subscribe=EVERYTHING)
    for name, rights in SERVICES.items()
}
USERS = {
    "migrate": permissions.provisioner(),
    "administrator": Permissions(account=STREAMS_ACCOUNT, publish=EVERYTHING, subscribe=EVERYTHING),
    **SERVICES,
    **NOSY,
}
STATE = "pki.state.secrets.00"
STORED = (
    STATE,
    "pki.state.cacerts.issuing",
    "est.request.default.issuing.normal",
    "est.request.b.issuing.normal",
    "pki.certificate.issued.demo.web",
    "pki.rotation.due.demo.web",
    "audit.issue.ca-signer",
    "audit.issue.renewal",
    "audit.refusal.est-frontend.x",
    "dead.ca-signer.x",
    "canary.ca-signer",
    "pki.renewal.info.20261129",
)
"""One topic of each kind that a stream stores."""


@dataclass
class World:
    """A server with all streams and consumers, where ca-signer and renewal answer."""

    server: EmbeddedNATS
    administrator: Bus
    before: dict[str, tuple[int, int]]
    opened: list[Bus] = field(default_factory=list)

    def settings(self, user: str) -> BusSettings:
        return BusSettings(
            url=self.server.url,
            nkey_seed_file=self.server.seed_file(user),
            senders_file=self.server.senders_file,
        )

    async def bus(self, user: str, **options: Any) -> Bus:
        """Connect as a user; closed with the server."""
        bus = await Bus.connect(self.settings(user), user.removesuffix("-b"), "test", **options)
        self.opened.append(bus)
        return bus

    @asynccontextmanager
    async def thief(self, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
        """Connect with a user's seed, without the suite's bus; with it come the violations."""
        client, violations = Client(), []

        async def error(exc: Exception) -> None:
            violations.append(str(exc))

        await client.connect(
            servers=[self.server.url],
            nkeys_seed_str=self.server.seed_file(user).read_text().strip(),
            error_cb=error,
        )
        try:
            yield client, violations
        finally:
            with contextlib.suppress(nats.errors.Error):
                await client.close()

    async def state(self) -> dict[str, tuple[int, int]]:
        """Last sequence and number of messages of each stream."""
        found = await self.administrator.client.jetstream().streams_info()
        return {str(s.config.name): (s.state.last_seq, s.state.messages) for s in found}

    async def new(self) -> set[tuple[str, str]]:
        """Streams and topics of what was stored since the last call."""
        await asyncio.sleep(0.3)
        after, found = await self.state(), set()
        assert after.keys() == self.before.keys()
        jetstream = self.administrator.client.jetstream()
        for stream, (last, _) in after.items():
            for sequence in range(self.before[stream][0] + 1, last + 1):
                with contextlib.suppress(nats.js.errors.NotFoundError):  # replaced by the next
                    message = await jetstream.get_msg(stream, sequence)
                    found.add((stream, str(message.subject)))
        self.before = after
        return found

    async def value(self, topic: str) -> tuple[int, bytes]:
        """Sequence and payload of a topic's stored value."""
        message = await self.administrator.client.jetstream().get_last_msg("PKI_STATE", topic)
        return int(message.seq or 0), bytes(message.data or b"")


@asynccontextmanager
async def running_accounts(
    folder: Path, *, monitor_port: int | None = None
) -> AsyncIterator[World]:
    """Start a server with all users, streams and consumers; ca-signer and renewal answer."""
    server = make_nats(folder, USERS)
    server.monitor_port = monitor_port
    await server.start()
    found = World(server, Bus.unconnected("administrator"), {})
    opened = found.opened
    try:
        for user in ("administrator", "migrate"):
            seed = server.seed_file(user).read_text().strip()
            opened.append(await Bus.connect(found.settings(user), user, "test", seed=seed))
        found.administrator = opened[0]
        consumers = [
            *(c for issuer in ("issuing", "corporate") for c in topics.signer_consumers(issuer)),
            *(*topics.SIGNER_CONSUMERS, *topics.RENEWAL_CONSUMERS, *topics.AUDIT_CONSUMERS),
        ]
        await declare(opened[1], topics.STREAMS, consumers, replicas=1)
        await _answer_everything(await found.bus("ca-signer"), permissions.signer())
        await _answer_everything(await found.bus("renewal"), permissions.renewal())
        yield found
    finally:
        for bus in opened:
            await bus.close()
        await server.stop(kill=True)


async def _answer_everything(bus: Bus, rights: Permissions) -> None:
    def answering() -> Callable[[Incoming], Awaitable[None]]:
        async def answer(message: Incoming) -> None:
            await bus.answer(message, b'{"secrets": []}')

        return answer

    for topic in rights.subscribe:
        if not topic.startswith("_"):
            await bus.subscribe(topic, answering(), of_anyone=True)
