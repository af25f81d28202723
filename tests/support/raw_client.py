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

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.context = stack.client_context()
        self.basic = "Basic " + base64.b64encode(f"load:{stack.secret}".encode()).decode()

    async def connect(
        self, context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1",
            self.stack.layout.ports.est,
            ssl=context or self.context,
            server_hostname="localhost",
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
        fields = {"Host": "localhost", "Connection": "close"}
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
