"""A whole suite, started as ``estsuite up`` starts it, and a client that never gives up."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import shutil
import ssl
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import nats.errors
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
)
from cryptography.x509.oid import NameOID
from nats.js.errors import ServiceUnavailableError

from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.permissions import Permissions
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estcore.tlog.findings import Finding
from estcore.tlog.items import expanded
from estcore.tlog.verify import Options, cross, verify
from estdev.layout import Layout, Ports, nats_users
from estdev.local import LocalSuite
from estdev.nats import EmbeddedNATS
from estsuite_testing.error_log import ERRORS
from estsuite_testing.suite_template import CopiedSuite, copy_template

POLICY = Path(__file__).with_name("policy.yaml")
ENROLL = "/.well-known/est/simpleenroll"
_UNPUBLISHED = "select count(*) from ca_signer.unannounced"


@dataclass
class Stack:
    """A running suite with one enrollment secret for many names."""

    suite: LocalSuite
    folder: Path
    secret: str = ""
    ports: list[int] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def layout(self) -> Layout:
        return self.suite.layout

    def client_context(
        self, certificate: Path | None = None, key: Path | None = None
    ) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.layout.root_file))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    async def export(self, service: str) -> Path:
        """Write what a service exports (``ca-signer``, ``audit``, ``renewal``); return the file."""
        out = self.folder / f"{service}-{next(self._numbers)}.jsonl"
        config = str(self.layout.config_file(service))
        await self.suite.command(service, "export", "--out", str(out), "--config", config)
        return out

    async def ledger(self) -> list[dict[str, Any]]:
        """The rows of ``ca-signer export``, one per issuance."""
        lines = _lines(await self.export("ca-signer"))
        return [line for line in lines if "issuance_id" in line]

    async def leaves(self) -> list[str]:
        """The leaves of the audit log as ``est-audit export`` writes them: JSON texts."""
        lines = _lines(await self.export("audit"))
        return [line["leaf"] for line in lines if line["type"] == "record"]

    async def records(self) -> list[dict[str, Any]]:
        """The audited facts, in the order of the log."""
        leaves = await self.leaves()
        return [dict(fact) for leaf in leaves for fact in expanded(json.loads(leaf)["record"])]

    async def until_recorded(self, within_s: float = 90) -> None:
        """Wait until renewal and audit have stored what was published for them.

        What a killed process had received comes again after its consumer's ack wait (30 s).
        """
        seed = self.layout.nats.seed_file("migrate")
        settings = BusSettings(url=self.layout.nats.url, nkey_seed_file=seed)
        bus = await Bus.connect(settings, "migrate", "test", seed=seed.read_text().strip())
        database = await self.layout.postgres.superuser()
        try:
            async with asyncio.timeout(within_s):
                while await database.fetchval(_UNPUBLISHED) or await _pending(bus):
                    await asyncio.sleep(0.3)
        finally:
            await database.close()
            await bus.close()

    async def verify_cross(self) -> str:
        """``est-audit verify --cross`` over fresh exports, once everything is recorded."""
        await self.until_recorded()
        ledger, renewal = [await self.export(service) for service in ("ca-signer", "renewal")]
        cross = ("--cross", str(ledger), "--renewal", str(renewal))
        config = str(self.layout.config_file("audit"))
        return await self.suite.command("audit", "verify", "--config", config, *cross)

    async def findings(self, *, later: dt.timedelta = dt.timedelta()) -> list[Finding]:
        """What ``est-audit verify --cross`` finds in fresh exports, now or some time later."""
        exports = [await self.export(s) for s in ("ca-signer", "renewal", "audit")]
        ledger, renewal, audit = (path.read_bytes().splitlines() for path in exports)
        options = Options(now=SystemClock().now() + later, live=True)
        verification = verify(audit, options)
        verification.report.extend(cross(verification.records, ledger, renewal))
        return verification.report.findings


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def _pending(bus: Bus) -> int:
    """Messages for renewal and audit that are not delivered, or not acknowledged."""
    jetstream = bus.client.jetstream()
    pending = 0
    for consumer in (*topics.RENEWAL_CONSUMERS, *topics.AUDIT_CONSUMERS):
        try:
            info = await jetstream.consumer_info(consumer.stream, consumer.name)
        except (ServiceUnavailableError, nats.errors.TimeoutError):
            return 1  # a cluster that elects a leader does not know
        pending += (info.num_pending or 0) + (info.num_ack_pending or 0)
    return pending


def make_csr(name: str, san: str | None = None) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A key and a CSR (DER) for a common name, and a DNS name where one is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    if san is not None:
        names = x509.SubjectAlternativeName([x509.DNSName(san)])
        builder = builder.add_extension(names, critical=False)
    return key, builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def certificate_in(body: bytes) -> x509.Certificate:
    found = pkcs7.load_der_pkcs7_certificates(b64decode(body))
    assert len(found) == 1
    return found[0]


class StubbornClient:
    """Repeats the same request until it has a certificate, on any front end."""

    def __init__(self, stack: Stack, ports: Sequence[int], *, deadline_s: float = 90) -> None:
        self._stack = stack
        self._ports = list(ports)
        self._deadline_s = deadline_s
        self.statuses: list[int | str] = []

    async def enroll(self, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key, csr = make_csr(name)
        auth = aiohttp.encode_basic_auth("load", self._stack.secret)
        context = self._stack.client_context()
        attempt = 0
        async with asyncio.timeout(self._deadline_s):
            while True:
                port = self._ports[attempt % len(self._ports)]
                attempt += 1
                try:
                    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
                    async with (
                        aiohttp.ClientSession(connector=connector) as session,
                        session.post(
                            f"https://localhost:{port}{ENROLL}",
                            data=b64encode(csr),
                            headers={"Content-Type": "application/pkcs10", "Authorization": auth},
                            timeout=aiohttp.ClientTimeout(total=15),
                        ) as response,
                    ):
                        body = await response.read()
                        self.statuses.append(response.status)
                        if response.status == 200:
                            certificate = certificate_in(body)
                            assert same_key(certificate, key)
                            return key, certificate
                        assert response.status in {202, 503}, (response.status, body)
                except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                    self.statuses.append(type(exc).__name__)
                await asyncio.sleep(0.3)


def same_key(certificate: x509.Certificate, key: Any) -> bool:
    def spki(public_key: Any) -> bytes:
        return bytes(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    return spki(certificate.public_key()) == spki(key.public_key())


async def start_stack(
    folder: Path,
    *,
    overrides: dict[str, Any] | None = None,
    policy: Path = POLICY,
    profiles: Path | None = None,
    users: dict[str, Permissions] | None = None,
) -> Stack:
    """Start a suite; ``users`` are NATS users besides those every suite has."""
    ports = Ports.free()
    ports.choose()
    layout = Layout(folder / "suite", ports)
    layout.overrides = overrides or {}
    secret = await copy_template(layout)
    if users:
        layout.nats = EmbeddedNATS(layout.folder, ports.nats, {**nats_users(), **users})
    suite = CopiedSuite(layout)
    ERRORS.follow(layout.logs)
    layout.prepare()
    shutil.copy(policy, layout.config / "policy.yaml")
    if profiles is not None:
        shutil.copy(profiles, layout.config / "profiles.yaml")
    try:
        await suite.start()
    except BaseException:  # Cleanup, then raised again: what has started must not outlive the run.
        await suite.stop()
        raise
    return Stack(suite, folder, secret, [layout.ports.est])


async def stop_stack(stack: Stack) -> None:
    try:
        await stack.suite.stop()
    finally:
        ERRORS.stopped(stack.layout.logs)
    shutil.rmtree(stack.layout.postgres.home, ignore_errors=True)
