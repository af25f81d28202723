"""A connection to NATS comes back whatever a reconnect ran into."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.transport import TcpTransport

from estcore.runtime.bus import Bus
from estcore.runtime.nats_client import Client
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def lost_and_found(platform: Platform, bus: Bus) -> None:
    await platform.nats.stop(kill=True)
    async with asyncio.timeout(10):
        while bus.connected:
            await asyncio.sleep(0.02)
    await platform.nats.start()


async def connected(bus: Bus, *, reviving: bool) -> None:
    async with asyncio.timeout(15):
        while not bus.connected:
            if reviving:
                bus.client.revive()
            await asyncio.sleep(0.05)
    await bus.client.flush()


async def test_an_error_that_is_none_of_the_network_does_not_end_reconnecting(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What uvloop raises for a transport that has closed."""
    bus = await Bus.connect(platform.bus("audit"), "audit", "test")
    raised: list[int] = []
    select = Client._select_next_server

    async def closed(client: Client) -> None:
        if len(raised) < 3:
            raised.append(1)
            raise RuntimeError("unable to perform operation; the handler is closed")
        await select(client)

    monkeypatch.setattr(Client, "_select_next_server", closed)
    try:
        await lost_and_found(platform, bus)
        await connected(bus, reviving=False)
    finally:
        await bus.close()
    assert len(raised) == 3


async def test_a_reconnect_ends_whose_cancellation_was_taken_for_a_refusal(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``asyncio.wait_for`` does it before Python 3.12, where both come at one moment."""
    connecting, lost = asyncio.Event(), asyncio.Event()

    async def refused(*_: object, **__: object) -> None:
        connecting.set()
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            lost.set()
        raise ConnectionRefusedError

    bus = await Bus.connect(platform.bus("audit"), "audit", "test")
    monkeypatch.setattr(TcpTransport, "connect", refused)
    await platform.nats.stop(kill=True)
    try:
        async with asyncio.timeout(10):
            await connecting.wait()
            task = bus.client._reconnection_task
            assert task is not None
            task.cancel()
            await asyncio.wait([task])
    finally:
        monkeypatch.undo()
        await platform.nats.start()
        await bus.close()
    assert lost.is_set()


async def test_a_client_whose_reconnecting_has_ended_is_revived(platform: Platform) -> None:
    bus = await Bus.connect(platform.bus("audit"), "audit", "test")
    try:
        await platform.nats.stop(kill=True)
        async with asyncio.timeout(10):
            while bus.client._reconnection_task is None:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        bus.client._reconnection_task.cancel()
        await platform.nats.start()
        await connected(bus, reviving=True)
    finally:
        await bus.close()
