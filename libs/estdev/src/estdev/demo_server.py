"""A small TLS server that swaps its certificate while running, and a client that never stops.

The swap never touches a live context: a fresh one is built and tried, then the SNI callback of
the permanent outer context hands it to every new handshake (it runs without SNI as well).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections import Counter
from pathlib import Path

from estcore.runtime.service import sleep_or_stop


class SwappingServer:
    """Answers every TLS connection with one line; ``use`` changes its certificate."""

    def __init__(self) -> None:
        self._outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._outer.sni_callback = self._choose
        self._current: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    def use(self, certificate_file: Path, key_file: Path) -> None:
        """Take this pair for every handshake from now on.

        Raises:
            ssl.SSLError: not a pair; the old one stays in use.
        """
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.load_cert_chain(certificate_file, key_file)
        if self._current is None:
            self._outer.load_cert_chain(certificate_file, key_file)
        self._current = fresh

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._outer)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def _choose(self, sslobj: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        if self._current is not None:
            sslobj.context = self._current

    async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"hello\n")
            await writer.drain()
        except OSError:
            return
        finally:
            writer.close()


class RestlessClient:
    """Connects again and again, verifies fully, counts what it saw."""

    def __init__(self, port: int, trust_file: Path, server_name: str) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=str(trust_file))
        self._server_name = server_name
        self.handshakes: Counter[str] = Counter()
        self.failures: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Connect twenty times a second until ``stop``."""
        while not await sleep_or_stop(stop, 0.05):
            try:
                async with asyncio.timeout(5):
                    await self._once()
            except (OSError, TimeoutError) as exc:
                self.failures.append(f"{type(exc).__name__}: {exc}")

    async def _once(self) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname=self._server_name
        )
        with contextlib.closing(writer):
            presented = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            await reader.readline()
            self.handshakes[hashlib.sha256(presented).hexdigest()] += 1
