"""A NATS connection with the stolen seed of one service of a running suite."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from estcore.messages.signatures import HEADER, MessageKey
from estcore.runtime.nats_client import Client, nats
from estsuite_testing.e2e_stack import Stack, certificate_in, make_csr
from estsuite_testing.raw_client import Client as ESTClient
from estsuite_testing.raw_client import b64


class Thief:
    """A NATS connection with one service's seed."""

    def __init__(self, stack: Stack, service: str, client: Client) -> None:
        self.stack, self.service, self.client = stack, service, client
        seed = stack.layout.nats.seed_file(service).read_text()
        self.key = MessageKey(seed, service)
        self.violations: list[str] = []

    async def publish(self, topic: str, payload: bytes, *, reply: str = "", **more: str) -> None:
        """Publish what is signed with the stolen key, whatever NATS says to it."""
        headers = {HEADER: self.key.sign(topic, payload), **more}
        await self.client.publish(topic, payload, reply=reply, headers=headers)
        await self.client.flush()

    async def ask(self, topic: str, body: dict[str, Any], reply: str) -> None:
        """Have the server answer on a subject of the thief's choice."""
        await self.client.publish(topic, json.dumps(body).encode(), reply=reply)
        await self.client.flush()


@asynccontextmanager
async def thief(stack: Stack, service: str) -> AsyncIterator[Thief]:
    client = Client()
    found = Thief(stack, service, client)

    async def error(exc: Exception) -> None:
        found.violations.append(str(exc))

    await client.connect(
        servers=[stack.layout.nats.url],
        nkeys_seed_str=stack.layout.nats.seed_file(service).read_text().strip(),
        inbox_prefix=f"_INBOX_{service.replace('-', '')}",
        error_cb=error,
    )
    try:
        yield found
    finally:
        with contextlib.suppress(nats.errors.Error):
            await client.drain()


async def enrolled(stack: Stack, name: str, secret: str | None = None) -> int:
    """Status of an enrollment with a secret, the right one by default; 200 with a certificate."""
    client = ESTClient.of(stack)
    if secret is not None:
        client.basic = "Basic " + b64encode(f"load:{secret}".encode()).decode()
    answer = await client.enroll(b64(make_csr(name)[1]))
    if answer.status == 200:
        certificate_in(answer.body)
    return answer.status
