"""Clients outside the cluster: each request has a new key and a new connection."""

from __future__ import annotations

import asyncio
import ssl
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp

from estsuite_testing.cluster.installation import HOST, Installation
from estsuite_testing.e2e_stack import certificate_in, make_csr

_ROOT = "/.well-known/est"
_NAME = "web.clinic.example"
_RETRY_S = 5.0
_END_S = 180
"""The last client has its certificate within this time after a test."""
BROKEN = {
    "ClientConnectorError",
    "ClientOSError",
    "ServerDisconnectedError",
    "ConnectionResetError",
    "ConnectionTimeoutError",
    "ServerTimeoutError",
    "TimeoutError",
}
"""What clients of a killed front end see, and repeat."""


@dataclass
class Client:
    """One way into the cluster."""

    address: tuple[str, int]
    context: ssl.SSLContext
    user: str = "web-bootstrap"
    secret: str = ""
    host: str = HOST
    token: str = ""

    @classmethod
    async def of(cls, installation: Installation, secret: str = "") -> Client:
        context = ssl.create_default_context(cafile=str(installation.root_certificate))
        return cls(await installation.address(), context, secret=secret)

    async def cacerts(self) -> int:
        """Return the status of /cacerts."""
        status, _, _ = await self._ask("GET", f"{_ROOT}/cacerts", None)
        return status

    async def enroll_once(self, csr: bytes, label: str = "services") -> tuple[int, float, bytes]:
        """Return status, Retry-After (0 for none) and body of one try."""
        return await self._ask("POST", f"{_ROOT}/{label}/simpleenroll", b64encode(csr))

    async def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, float, bytes]:
        headers = {}
        if body is not None:
            basic = aiohttp.encode_basic_auth(self.user, self.secret)
            headers = {
                "Content-Type": "application/pkcs10",
                "Authorization": f"Bearer {self.token}" if self.token else basic,
            }
        host, port = self.address
        connector = aiohttp.TCPConnector(ssl=self.context, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                method,
                f"https://{host}:{port}{path}",
                data=body,
                headers=headers,
                server_hostname=self.host,
                timeout=aiohttp.ClientTimeout(total=15),
            ) as response,
        ):
            after = float(response.headers.get("Retry-After", 0))
            return response.status, after, await response.read()


@dataclass
class Load:
    """Enrollments at a rate, each repeated until it has its certificate."""

    client: Client
    per_second: float
    answers: Counter[str] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    serials: list[int] = field(default_factory=list)
    longest_s: float = 0.0
    _tasks: list[asyncio.Task[int]] = field(default_factory=list)
    _starting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Load:
        self._starting = asyncio.create_task(self._start())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._starting is not None
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)
        if error is not None:
            for task in self._tasks:
                task.cancel()
        try:
            async with asyncio.timeout(_END_S):
                await asyncio.gather(*self._tasks, return_exceptions=error is not None)
        except TimeoutError:
            raise AssertionError(f"not every client has a certificate: {self.report()}") from None

    @property
    def begun(self) -> int:
        """How many certificates were asked for."""
        return len(self._tasks)

    def report(self) -> str:
        """Return one line of figures."""
        return (
            f"{len(self.serials)} certificates of {self.begun}, answers {dict(self.answers)}, "
            f"tries {dict(self.tries)}, longest {self.longest_s:.1f} s"
        )

    async def _start(self) -> None:
        while True:
            self._tasks.append(asyncio.create_task(self.one()))
            await asyncio.sleep(1 / self.per_second)

    async def one(self) -> int:
        """Enroll until there is a certificate; returns its serial number."""
        _, csr = make_csr(_NAME)
        begun, tries = time.monotonic(), 0
        while True:
            tries += 1
            assert tries < 100, self.report()
            try:
                status, after, body = await self.client.enroll_once(csr)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                self.answers[type(exc).__name__] += 1
                await asyncio.sleep(1)
                continue
            self.answers[str(status)] += 1
            if status == 200:
                break
            assert status in {202, 503}, (status, body)
            assert after > 0, (status, body)
            await asyncio.sleep(min(after, _RETRY_S))
        self.tries[tries] += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        serial = certificate_in(body).serial_number
        self.serials.append(serial)
        return serial
