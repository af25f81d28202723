"""The proxy that loses, delays and resets, against an echo."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from estdev.ports import free_port
from estsuite_testing.chaos.fault_proxy import FaultProxy


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while octets := await reader.read(1024):
                writer.write(octets)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = FaultProxy(free_port(), server.sockets[0].getsockname()[1])
    await made.start()
    yield made
    await made.stop()
    server.close()


async def ask(proxy: FaultProxy, octets: bytes, within_s: float = 5) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(octets)
        async with asyncio.timeout(within_s):
            return await reader.read(1024)
    finally:
        writer.close()


async def test_it_forwards(proxy: FaultProxy) -> None:
    assert await ask(proxy, b"hello") == b"hello"


async def test_held_connections_are_open_and_silent_and_go_on(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.hold()
    writer.write(b"one")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1024), 0.3)
    proxy.release()
    async with asyncio.timeout(5):
        assert await reader.read(1024) == b"one"
    writer.close()


async def test_a_delay_counts_in_both_directions(proxy: FaultProxy) -> None:
    proxy.delay_s = 0.1
    started = time.monotonic()
    assert await ask(proxy, b"slow") == b"slow"
    assert time.monotonic() - started >= 0.2


async def test_a_connection_is_reset_once_after_what_was_named(proxy: FaultProxy) -> None:
    proxy.reset_after = b"COMMIT"
    assert await ask(proxy, b"BEGIN") == b"BEGIN"
    with pytest.raises(ConnectionResetError):
        await ask(proxy, b"COMMIT")
    assert await ask(proxy, b"COMMIT") == b"COMMIT"
