"""HTTP/1.1 over TLS, without anything that repeats requests by itself."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from estsuite_testing.reload.load import Connection, Unanswered

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class HTTPClient:
    """Connects for GET requests."""

    alpn: tuple[str, ...] = ()

    async def connect(self, port: int, context: ssl.SSLContext) -> Connection:
        """Connect to this machine."""
        streams = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        return _HTTPConnection(*streams)


class _HTTPConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._last = False

    async def request(self) -> None:
        """Send GET, check status 200 and read the body."""
        head = (await self._head()).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"answered {head[:60]!r}")
        fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
        await self._reader.readexactly(int(fields[b"content-length"]))
        self._last = fields.get(b"connection", b"").strip() == b"close"

    async def _head(self) -> bytes:
        try:
            self._writer.write(_REQUEST)
            await self._writer.drain()
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                raise
            raise Unanswered("end of the connection") from exc
        except ConnectionError as exc:
            raise Unanswered(type(exc).__name__) from exc

    def ended(self) -> bool:
        """Return whether the server said that it closes, or closed."""
        return self._last or self._reader.at_eof()

    async def close(self) -> None:
        """Close the connection, whatever the server does."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self._writer.wait_closed()
