"""GlobalSign's EST server with its mock CA, as a foreign server for ``make conformance``."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from estdev.ports import free_port
from estsuite_testing.foreign.globalsign import commands

_START_S = 20


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, and what to trust."""

    url: str
    ca_file: Path


@contextmanager
def globalsign_server(folder: Path) -> Iterator[RunningServer]:
    """The server for as long as the context lasts; it gives anybody a certificate for any CSR.

    Raises:
        RuntimeError: it ended, or does not listen in time; with its log.
    """
    port = free_port()
    ca_key, ca = _certificate(folder, "ca", "Foreign CA", None)
    _certificate(folder, "server", "localhost", (ca_key, ca))
    config = {
        "mock_ca": {"certificates": str(folder / "ca.pem"), "private_key": str(folder / "ca.key")},
        "tls": {
            "listen_address": f"localhost:{port}",
            "certificates": str(folder / "server.pem"),
            "private_key": str(folder / "server.key"),
            "client_cas": [str(folder / "ca.pem")],
        },
        "allowed_hosts": ["localhost"],
        "rate_limit": 1000,
        "timeout": 30,
        "log_file": str(folder / "server.log"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = [str(commands() / "estserver"), "-config", str(folder / "config.json")]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_S
        while not _listens(folder, port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"estserver: {(folder / 'output').read_text()[-2000:]}")
            time.sleep(0.1)
        yield RunningServer(f"https://localhost:{port}", folder / "ca.pem")
    finally:
        process.terminate()
        process.wait(10)


def _listens(folder: Path, port: int) -> bool:
    done = subprocess.run(
        [
            *("curl", "-q", "-s", "-o", "/dev/null", "--cacert", str(folder / "ca.pem")),
            f"https://localhost:{port}/.well-known/est/cacerts",
        ],
        check=False,
    )
    return done.returncode == 0


def _certificate(
    folder: Path,
    file: str,
    name: str,
    issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer[0] if issuer else key
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(signer, SHA256())
    )
    (folder / f"{file}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (folder / f"{file}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return key, certificate
