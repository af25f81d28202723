"""A syslog receiver over TLS with certificates of its own, that can break."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import re
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PEM = Encoding.PEM
_CA = x509.Name.from_rfc4514_string("CN=test siem ca")


class SIEM:
    """Takes frames, remembers record ids in order of arrival."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "siem-ca.pem"
        self.certificate_file, self.key_file = folder / "siem.pem", folder / "siem.key"
        self._ca_key = self._make_ca()
        self.issue_server_certificate()
        self.frames: list[bytes] = []
        self.connections = 0
        self.break_after: int | None = None
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate_file, self.key_file)
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                length = int((await reader.readuntil(b" "))[:-1])
                frame = await reader.readexactly(length)
                if self.break_after is not None and len(self.frames) >= self.break_after:
                    self.break_after = None
                    return
                self.frames.append(frame)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    @property
    def indexes(self) -> list[int]:
        """Log indexes as they came, checkpoints left out."""
        return [int(m[1]) for f in self.frames if (m := re.search(rb'log_index="(\d+)"', f))]

    @property
    def notes(self) -> list[str]:
        """Checkpoints as they came."""
        bodies = [f.partition(b"] ")[2] for f in self.frames if b"audit.checkpoint" in f]
        return [json.loads(body)["checkpoint"] for body in bodies]

    def _make_ca(self) -> ec.EllipticCurvePrivateKey:
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        ca = (
            x509.CertificateBuilder()
            .subject_name(_CA)
            .issuer_name(_CA)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        self.ca_file.write_bytes(ca.public_bytes(PEM))
        return key

    def issue_server_certificate(self, *, expired: bool = False) -> None:
        """Write another server certificate; the next start of a server uses it."""
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        hour = dt.timedelta(hours=1)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name.from_rfc4514_string("CN=siem"))
            .issuer_name(_CA)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * hour)
            .not_valid_after(now - hour if expired else now + 24 * hour)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("siem.test")]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()),
                critical=False,
            )
            .sign(self._ca_key, hashes.SHA256())
        )
        self.certificate_file.write_bytes(leaf.public_bytes(PEM))
        self.key_file.touch(mode=0o600)
        self.key_file.write_bytes(key.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption()))
