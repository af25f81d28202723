"""A TCP proxy that loses, delays and resets what goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """Listens on a port of loopback and forwards to another one, or to one of a different host."""

    def __init__(self, port: int, target: int, host: str = "127.0.0.1") -> None:
        self.port, self.target, self._host = port, target, host
        self.delay_s = 0.0
        self.reset_after: bytes | None = None
        """Connections are reset when the client has sent these octets, before any answer."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        self._flowing.set()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def hold(self) -> None:
        """Forward nothing from now on, in both directions; connections stay open (half-open)."""
        self._flowing.clear()

    def release(self) -> None:
        """Forward again, without delay or resets."""
        self._flowing.set()
        self.delay_s, self.reset_after = 0.0, None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._flowing.wait()
            there = await asyncio.open_connection(self._host, self.target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            self._connections.discard(task)
            return
        ways = [
            asyncio.ensure_future(self._pump(reader, there[1], outward=True)),
            asyncio.ensure_future(self._pump(there[0], writer, outward=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # by ``stop``; asyncio reports a handler that ends by it
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, there[1]):
                _reset(end)
            self._connections.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outward: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(_CHUNK):
                await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(octets)
                await writer.drain()
                if outward and self.reset_after is not None and self.reset_after in octets:
                    self.reset_after = None
                    return


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without the other end being able to read what was under way."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
