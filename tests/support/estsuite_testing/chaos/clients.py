"""Clients that enroll, renew and repeat through every fault, as the documentation asks of them."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.ids import serial_hex
from estcore.pki.keys import spki_der
from estsuite_testing.chaos.history import History, Kind, Operation
from estsuite_testing.e2e_stack import certificate_in, make_csr, same_key, write_key

_BASE = "/.well-known/est"
_CODE = re.compile(r"\[([a-z_.]+)\]")
_PASSING = {202, 429, 503}
_PAUSE_S = 0.7
_EXCUSE_S = 0.2
"""For what ended the front end at this moment to be known."""
_REPEATED_S = 500
"""Below the window of the profile (600 s), after which a request gets a new certificate."""


@dataclass
class Holder:
    """A certificate a client has, with what it asked for it."""

    name: str
    key: ec.EllipticCurvePrivateKey
    csr: bytes
    certificate: x509.Certificate
    renewed: bool
    """It is a successor; repeated on its own, its request would be a different one."""
    since_s: float = field(default_factory=time.monotonic)

    @property
    def repeats(self) -> bool:
        """Whether the same request gets the same certificate, for the profile's window."""
        return time.monotonic() - self.since_s < _REPEATED_S

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(SHA256()).hex()


@dataclass(kw_only=True)
class Fleet:
    """So many clients at once, each with one operation after the other."""

    history: History
    folder: Path
    root: Path
    secret: str
    ports: list[int]
    random: random.Random
    pause_s: float = 0.5
    _held: list[Holder] = field(default_factory=list)
    _number: int = 0

    async def run(self, stop: asyncio.Event, clients: int) -> None:
        """Work until ``stop``; what is under way then goes on until it is done."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(stop))

    async def _client(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._one()
            await asyncio.sleep(self.pause_s * self.random.uniform(0.5, 1.5))

    async def _one(self) -> None:
        chance = self.random.random()
        if chance < 0.6 or not self._held:
            self._number += 1
            await self._ask("enroll", f"dev-{self._number}")
            return
        holder = self.random.choice(self._held)
        if chance < 0.8 or holder.renewed or not holder.repeats:
            # The successor takes its place: a certificate is renewed once.
            self._held.remove(holder)
            await self._ask("reenroll", holder.name, before=holder)
        else:
            await self._ask("repeat", holder.name, before=holder)

    async def _ask(self, kind: Kind, name: str, before: Holder | None = None) -> None:
        if kind == "repeat":
            assert before is not None
            key, csr = before.key, before.csr
        else:
            key, csr = make_csr(name)
        operation = Operation(kind, name, sha256(spki_der(key.public_key())).hexdigest())
        if kind == "repeat" and before is not None:
            operation.expected = before.fingerprint
        self.history.operations.append(operation)
        context = self._context(before if kind == "reenroll" else None)
        certificate = await self._until_done(operation, csr, key, context)
        if certificate is not None and kind != "repeat":
            self._held.append(Holder(name, key, csr, certificate, kind == "reenroll"))

    async def _until_done(
        self,
        operation: Operation,
        csr: bytes,
        key: ec.EllipticCurvePrivateKey,
        context: ssl.SSLContext,
    ) -> x509.Certificate | None:
        verb = "simplereenroll" if operation.kind == "reenroll" else "simpleenroll"
        while True:
            port = self.random.choice(self.ports)
            try:
                status, body = await self._post(
                    f"https://localhost:{port}{_BASE}/{verb}", csr, context
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                operation.answers.append(type(exc).__name__)
            else:
                code = _CODE.search(body.decode(errors="replace"))
                operation.answers.append(f"{status} {code[1]}" if code else str(status))
                if status == 200:
                    return self._take(operation, body, key)
                if status not in _PASSING:
                    operation.fault = f"answered {status}: {body[:200].decode(errors='replace')}"
                    operation.ended_s = time.monotonic()
                    return None
            await asyncio.sleep(_PAUSE_S * self.random.uniform(0.8, 1.2))

    def _take(
        self, operation: Operation, body: bytes, key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        certificate = certificate_in(body)
        operation.ended_s = time.monotonic()
        operation.serial = serial_hex(certificate.serial_number)
        operation.fingerprint = certificate.fingerprint(SHA256()).hex()
        if not same_key(certificate, key):
            operation.fault = "the certificate is for a different key"
        return certificate

    async def _post(self, url: str, csr: bytes, context: ssl.SSLContext) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/pkcs10"}
        if "simpleenroll" in url:
            headers["Authorization"] = aiohttp.encode_basic_auth("load", self.secret)
        connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        timeout = aiohttp.ClientTimeout(total=15)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(url, data=b64encode(csr), headers=headers) as response,
        ):
            return response.status, await response.read()

    def _context(self, holder: Holder | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.root))
        if holder is not None:
            pem = self.folder / f"{holder.fingerprint[:16]}.pem"
            pem.write_bytes(holder.certificate.public_bytes(Encoding.PEM))
            key = write_key(pem.with_suffix(".key"), holder.key)
            context.load_cert_chain(pem, key)
            pem.unlink()
            key.unlink()
        return context


@dataclass(kw_only=True)
class CACertsWatcher:
    """Asks every front end for the CA certificates, which it has to serve whatever is down."""

    history: History
    root: Path
    port: int
    excused: asyncio.Event
    """Set while the front end itself is ended or frozen, and a moment after."""
    asked: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Ask twice a second until ``stop``."""
        context = ssl.create_default_context(cafile=str(self.root))
        timeout = aiohttp.ClientTimeout(total=8)
        while not stop.is_set():
            before = self.excused.is_set()
            try:
                connector = aiohttp.TCPConnector(ssl=context, force_close=True)
                async with (
                    aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                    session.get(f"https://localhost:{self.port}{_BASE}/cacerts") as response,
                ):
                    fault = "" if response.status == 200 else f"answered {response.status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                fault = type(exc).__name__
            self.asked += 1
            if fault and not before:
                await asyncio.sleep(_EXCUSE_S)
            if fault and not before and not self.excused.is_set():
                at = round(time.monotonic() - self.history.started_s, 1)
                self.history.faults.append(f"/cacerts at port {self.port}: {fault} at {at} s")
            await asyncio.sleep(0.5)
