"""Requests octet by octet over TLS, as clients nobody here wrote send them."""

from __future__ import annotations

import asyncio
import base64
import ssl

from e2e_stack import Stack

BASE = "/.well-known/est"


class Answer:
    def __init__(self, octets: bytes) -> None:
        head, _, self.body = octets.partition(b"\r\n\r\n")
        self.head = head + b"\r\n\r\n"
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.lines = lines[1:]
        self.headers = dict(line.split(": ", 1) for line in lines[1:])

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """Raw requests over TLS; reads until the server closes."""

    stack: Stack

    def __init__(
        self, *, host: str, port: int, context: ssl.SSLContext, user: str, password: str
    ) -> None:
        self.host, self.port = host, port
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
        return await asyncio.open_connection(
            self.host, self.port, ssl=context or self.context, server_hostname=self.host
        )

    async def raw(self, octets: bytes, context: ssl.SSLContext | None = None) -> bytes:
        reader, writer = await self.connect(context)
        writer.write(octets)
        await writer.drain()
        async with asyncio.timeout(15):
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
        fields = {"Host": self.host, "Connection": "close"}
        if body:
            fields["Content-Type"] = "application/pkcs10"
            fields["Content-Length"] = str(len(body))
        if auth:
            fields["Authorization"] = auth
        fields.update({k.replace("_", "-"): v for k, v in headers.items()})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        return Answer(await self.raw(head.encode() + b"\r\n" + body, context))

    async def enroll(
        self, body: bytes, *, path: str = f"{BASE}/simpleenroll", **more: str
    ) -> Answer:
        return await self.request("POST", path, body, auth=self.basic, **more)


def b64(der: bytes) -> bytes:
    return base64.b64encode(der)
