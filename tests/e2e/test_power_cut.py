"""A power cut on a single NATS server: acknowledged messages of the last seconds are gone.

The disk of a server that was cut off is that of a while ago. It is made here by an older copy of
the folder of its streams, in whose place it comes back.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from estsuite_testing.e2e_stack import Stack, StubbornClient, start_stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

LOST = 10


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    started = await start_stack(
        tmp_path, overrides={"ca-signer": {"lease_s": 2, "sweep_every_s": 0.5}}
    )
    try:
        yield started
    finally:
        await stop_stack(started)


@pytest.mark.parametrize("signer_dies", [False, True])
async def test_what_a_power_cut_took_from_the_streams_is_published_again(
    stack: Stack, tmp_path: Path, signer_dies: bool
) -> None:
    """Where ca-signer lives on, from its memory; where it dies as well, from the ledger."""
    client, suite, nats = StubbornClient(stack, stack.ports), stack.suite, stack.layout.nats
    await client.enroll("dev-before")
    await stack.until_recorded()
    for reader in ("audit", "renewal"):
        await suite.stop_service(reader)
    await nats.stop()
    disk = tmp_path / "disk"
    shutil.copytree(nats.store, disk)
    await nats.start()
    await asyncio.gather(*(client.enroll(f"dev-lost-{number}") for number in range(LOST)))
    await nats.stop(kill=True)
    if signer_dies:
        await suite.stop_service("ca-signer", kill=True)
    shutil.rmtree(nats.store)
    shutil.copytree(disk, nats.store)
    await nats.start()
    if signer_dies:
        await suite.start_service("ca-signer", "ca-signer", wait=True)
    for reader in ("audit", "renewal"):
        await suite.start_service(reader, reader, wait=True)
    await client.enroll("dev-after")
    deadline = asyncio.get_running_loop().time() + 220
    while found := await stack.findings():
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(1)
    issued = [row for row in await stack.ledger() if row["state"] == "issued"]
    assert len(issued) >= LOST + 2
