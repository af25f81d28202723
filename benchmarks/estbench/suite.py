"""The whole suite under measurement, and the client certificate that everything is asked with."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from estbench import programs
from estbench.counters import metric, postgres_counts, stream_counts
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite, admin_get


@dataclass(frozen=True)
class Clients:
    """Certificates that the suite and its peers share, so that handshakes are alike."""

    folder: Path
    ca: Path

    @property
    def certificate(self) -> Path:
        """The load generator's."""
        return self.folder / "client.pem"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.folder / "client.key"

    @property
    def root(self) -> Path:
        """The trust anchor."""
        return self.ca / "root.pem"

    @property
    def issuing(self) -> Path:
        """The certificate of the CA that issues."""
        return self.ca / "issuing.pem"

    @property
    def bundle(self) -> Path:
        """What a server checks client certificates with: root and issuing CA."""
        return self.folder / "clients.pem"

    @property
    def server_certificate(self) -> Path:
        """The chain that servers present."""
        return self.ca / "server" / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its key."""
        return self.ca / "server" / "server.key"

    def options(self) -> list[str]:
        """Return trust anchor and client certificate for the load generator."""
        return ["-sni", "localhost", "-ca", str(self.root), *self.own()]

    def own(self) -> list[str]:
        """Return the client certificate alone."""
        return ["-cert", str(self.certificate), "-key", str(self.key)]


class Suite:
    """PostgreSQL, NATS and the four services, ledger and audit on."""

    settle_s = 2.0

    def __init__(
        self, folder: Path, name: str = "suite", *, frontends: int = 1, signers: int = 1
    ) -> None:
        self.name = name
        self._frontends, self._signers = frontends, signers
        ports = Ports.free()
        ports.choose()
        self.layout = Layout(folder, ports)
        self.layout.overrides = {
            s: {"telemetry": {"log_level": "INFO"}} for s in ("est-frontend", "ca-signer")
        }
        self.suite = LocalSuite(self.layout)
        self.clients = Clients(folder / "client", self.layout.ca)
        self._admin: asyncpg.Connection | None = None

    async def start(self) -> None:
        """Start everything and enroll the client."""
        self.layout.prepare()
        shutil.copy(programs.BENCHMARKS / "policy.yaml", self.layout.config / "policy.yaml")
        await self.suite.start()
        for n in range(1, self._frontends):
            await self.suite.start_service("est-frontend", f"est-frontend-{n}", wait=True)
        for n in range(1, self._signers):
            await self.suite.start_service("ca-signer", f"ca-signer-{n}", wait=True)
        await self._enroll_client()

    async def _enroll_client(self) -> None:
        config = str(self.layout.config_file("ca-signer"))
        secret = await self.suite.command(
            "ca-signer", "secret", "create", "--id", "bench", "--config", config
        )
        clients = self.clients
        clients.folder.mkdir()
        clients.bundle.write_bytes(clients.root.read_bytes() + clients.issuing.read_bytes())
        request, answer = clients.folder / "csr.b64", clients.folder / "answer.b64"
        csr = _run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt",
                   "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(clients.key),
                   "-subj", "/CN=bench-client", "-outform", "DER")  # fmt: skip
        request.write_bytes(_run("openssl", "base64", octets=csr))
        await asyncio.sleep(0.5)
        _run("curl", "-sS", "-f", "--cacert", str(clients.root), "-u", f"bench:{secret.strip()}",
             "-H", "Content-Type: application/pkcs10", "--data-binary", f"@{request}",
             "-o", str(answer), self.suite.url + "/simpleenroll")  # fmt: skip
        der = _run("openssl", "base64", "-d", "-A", "-in", str(answer))
        clients.certificate.write_bytes(
            _run("openssl", "pkcs7", "-inform", "DER", "-print_certs", octets=der)
        )

    def processes(self) -> Mapping[str, int]:
        """Return services by instance, and both servers."""
        own = {name: running.process.pid for name, running in self.suite.services.items()}
        servers = {"PostgreSQL": self.layout.postgres.pid, "NATS": self.layout.nats.pid}
        return {**dict(sorted(own.items())), **servers}

    def load_options(self) -> list[str]:
        """Return how to reach est-frontend with the client certificate."""
        return [*self.clients.options(), *self.address()]

    def address(self) -> list[str]:
        """Return how to reach est-frontend."""
        return ["-addr", f"127.0.0.1:{self.layout.ports.est}"]

    async def database(self) -> asyncpg.Connection:
        """Return a superuser's connection, kept until the suite stops."""
        if self._admin is None:
            self._admin = await self.layout.postgres.superuser()
        return self._admin

    async def counts(self) -> dict[str, float]:
        """Return what database, streams, audit and signers have done so far."""
        connection = await self.database()
        found = await postgres_counts(connection)
        size = await connection.fetchval("select size from audit.head")
        found["audit_records"] = float(size or 0)
        found |= await stream_counts(self.layout.nats)
        signers = [r for r in self.suite.services.values() if r.service == "ca-signer"]
        pages = [await admin_get(r.admin_port, "/metrics") for r in signers]
        for name in ("sum", "count"):
            values = [metric(page, f"ca_signer_batch_size_{name}") for page in pages]
            found[f"batch_{name}"] = sum(values)
        return found

    async def stop(self) -> None:
        """Stop everything and remove the database."""
        if self._admin is not None:
            await self._admin.close()
        await self.suite.stop()
        shutil.rmtree(self.layout.postgres.home, ignore_errors=True)


def _run(*command: str, octets: bytes | None = None) -> bytes:
    return subprocess.run(command, input=octets, check=True, capture_output=True).stdout
