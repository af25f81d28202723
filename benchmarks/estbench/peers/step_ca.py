"""step-ca with PostgreSQL, enrolling by ``POST /1.0/sign`` with one-time tokens.

A JWK provisioner signs the tokens, which the load generator makes before its clock starts. The
client also presents its certificate, so the handshake is mutual as with the suite; step-ca checks
it and authorizes by the token all the same. ``/1.0/renew`` authorizes by the client certificate,
but issues for the key of that certificate: it is no enrollment. PostgreSQL is of the same wheel
and has the same settings as the suite's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import asyncpg
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from estbench import programs
from estbench.counters import postgres_counts
from estbench.server import ended, started
from estbench.suite import Suite
from estdev.ports import free_port
from estdev.postgres import EmbeddedPostgres

_PROVISIONER = "bench"
_KEY_ID = "bench-key"
_SUPERUSER = "postgres"


class StepCA:
    """One process of step-ca and its PostgreSQL."""

    name = "step-ca + PostgreSQL"
    settle_s = 2.0

    def __init__(self, suite: Suite, folder: Path) -> None:
        self._clients = suite.clients
        self._passphrase = suite.layout.secrets / "ca.passphrase"
        self._folder = folder
        self._port = free_port()
        self._postgres = EmbeddedPostgres(folder, free_port())
        self._process: asyncio.subprocess.Process | None = None
        self._admin: asyncpg.Connection | None = None

    async def start(self) -> None:
        """Start both, with the CA of the suite, which also issued the client certificate."""
        self._folder.mkdir(exist_ok=True)
        await self._postgres.start()
        config = self._folder / "ca.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps(self._settings(), indent=1))
        self._process = await started(
            programs.step_ca(), config, log=self._folder / "step-ca.log", port=self._port,
            environment={"PATH": "/usr/bin:/bin", "HOME": str(self._folder),
                         "STEPPATH": str(self._folder)},
        )  # fmt: skip
        await self._postgres.provision(())
        self._admin = await self._postgres.superuser()

    def _settings(self) -> dict[str, object]:
        password = (self._folder / "secrets" / "superuser.password").read_text().strip()
        server = f"{_SUPERUSER}:{password}@127.0.0.1:{self._postgres.port}"
        return {
            "root": str(self._clients.root),
            "crt": str(self._clients.issuing),
            "key": str(ca_key(self._clients.ca, self._passphrase, self._folder)),
            "address": f"127.0.0.1:{self._port}",
            "dnsNames": ["localhost"],
            "logger": {"format": "text"},
            "db": {
                "type": "postgresql",
                "dataSource": f"postgresql://{server}/",
                "database": "step_ca",
            },
            "authority": {
                "provisioners": [{"type": "JWK", "name": _PROVISIONER, "key": self._jwk()}]
            },
        }

    def _jwk(self) -> dict[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        write_key(self._key_file, key)
        point = key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(n.to_bytes(32)).rstrip(b"=").decode()
            for n in (point.x, point.y)
        )
        return {"use": "sig", "kty": "EC", "kid": _KEY_ID, "crv": "P-256", "alg": "ES256",
                "x": x, "y": y}  # fmt: skip

    @property
    def _key_file(self) -> Path:
        return self._folder / "provisioner.key"

    def processes(self) -> Mapping[str, int]:
        """Return both."""
        assert self._process is not None
        return {"step-ca": self._process.pid, "PostgreSQL": self._postgres.pid}

    def load_options(self) -> list[str]:
        """Return how to reach the sign endpoint and how to sign tokens."""
        return [*self._clients.options(), "-addr", f"127.0.0.1:{self._port}", "-expect", "201",
                "-api", "step-ca", "-provisioner", _PROVISIONER, "-kid", _KEY_ID,
                "-jwk", str(self._key_file)]  # fmt: skip

    async def counts(self) -> dict[str, float]:
        """Return what PostgreSQL has done so far."""
        assert self._admin is not None
        return await postgres_counts(self._admin)

    async def stop(self) -> None:
        """Stop both and remove the database."""
        if self._admin is not None:
            await self._admin.close()
        if self._process is not None:
            await ended(self._process)
        await self._postgres.stop()
        shutil.rmtree(self._postgres.home, ignore_errors=True)


def ca_key(ca: Path, passphrase: Path, folder: Path) -> Path:
    """Write the suite's issuing key as a peer reads it, without encryption; returns the file."""
    octets = (ca / "issuing.key").read_bytes()
    key = load_pem_private_key(octets, passphrase.read_text().strip().encode())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return write_key(folder / "issuing.key", key)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write a key that only its owner can read; returns the file."""
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path
