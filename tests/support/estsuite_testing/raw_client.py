"""Requests octet by octet over TLS, as foreign clients send them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from typing_extensions import override

from estsuite_testing.e2e_stack import Stack

BASE = "/.well-known/est"
_OK = 200
_SEEN = 100


def cut(writer: asyncio.StreamWriter) -> None:
    """Cut a connection, which may be closed.

    asyncio before 3.11.5 fails to abort a TLS transport that has closed.
    """
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


class Headers(dict[str, str]):
    """Header fields; their names compare without regard to case (RFC 9110 section 5.1)."""

    def __init__(self, lines: list[str]) -> None:
        for line in lines:
            name, _, value = line.partition(":")
            self[name.strip().lower()] = value.strip()

    @override
    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    @override
    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    @override
    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        """Return a field, or an empty text: never None."""
        return super().get(name.lower(), default)


class Answer:
    """A response, taken apart. A chunked body is put together again."""

    def __init__(self, octets: bytes) -> None:
        head, end, self.body = octets.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = re.match(r"HTTP/1\.[01] ([0-9]{3})(?: |$)", lines[0])
        if not octets:
            raise AssertionError("the server closed the connection without an answer")
        if not end or status is None:
            raise AssertionError("the answer is not an HTTP/1.1 response")
        self.head = head + end
        self.status = int(status[1])
        self.lines = lines[1:]
        self.headers = Headers(lines[1:])
        if self.headers.get("Transfer-Encoding").lower() == "chunked":
            self.body = _unchunked(self.body)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def seen(self) -> str:
        """Status and the first words of the text, for a sentence."""
        words = " ".join(self.text.split())[:_SEEN] if self.status != _OK else ""
        return f"{self.status}: {words}" if words else str(self.status)


class Client:
    """Raw requests over TLS; reads until the server closes."""

    stack: Stack
    address: str | None = None
    """Where to connect, if not by the name of the host."""
    source: str | None = None
    """The address to connect from."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        context: ssl.SSLContext,
        user: str,
        password: str,
        timeout_s: float = 15,
    ) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self.context = context
        self.basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    @classmethod
    def of(cls, stack: Stack) -> Client:
        """A client of a running suite, with the secret ``load``."""
        client = cls(
            host="localhost",
            port=stack.layout.ports.est,
            context=stack.client_context(),
            user="load",
            password=stack.secret,
        )
        client.stack = stack
        return client

    async def connect(
        self, context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(self.timeout_s):
            return await asyncio.open_connection(
                self.address or self.host,
                self.port,
                ssl=context or self.context,
                server_hostname=self.host,
                local_addr=None if self.source is None else (self.source, 0),
            )

    @asynccontextmanager
    async def connection(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is cut at the end, however the server behaves."""
        reader, writer = await self.connect(context)
        try:
            yield reader, writer
        finally:
            cut(writer)

    async def raw(self, octets: bytes, context: ssl.SSLContext | None = None) -> bytes:
        async with self.connection(context) as (reader, writer):
            async with asyncio.timeout(self.timeout_s):
                writer.write(octets)
                await writer.drain()
                answer = await reader.read()
            writer.close()
            return answer

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        context: ssl.SSLContext | None = None,
        auth: str | None = None,
        **headers: str,
    ) -> Answer:
        """Send one request; a header given as an empty text is not sent."""
        fields = {"Host": self.host, "Connection": "close"}
        if body:
            fields["Content-Type"] = "application/pkcs10"
            fields["Content-Transfer-Encoding"] = "base64"
            fields["Content-Length"] = str(len(body))
        if auth:
            fields["Authorization"] = auth
        fields.update({k.replace("_", "-"): v for k, v in headers.items()})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{k}: {v}\r\n" for k, v in fields.items() if v
        )
        return Answer(await self.raw(head.encode() + b"\r\n" + body, context))

    async def enroll(
        self, body: bytes, *, path: str = f"{BASE}/simpleenroll", **more: Any
    ) -> Answer:
        return await self.request("POST", path, body, auth=self.basic, **more)


def _unchunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        out, body = out + rest[:length], rest[length:].removeprefix(b"\r\n")
    return out


def b64(der: bytes) -> bytes:
    return base64.b64encode(der)
