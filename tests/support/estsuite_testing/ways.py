"""Every way in at one suite: a maker of devices, a person, a registrar, secrets; policy ``ways.yaml``."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)
from cryptography.x509.oid import NameOID

from est_frontend.auth.password_file import HASHER
from estcore.est.http_digest import verifier
from estsuite_testing.e2e_stack import (
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
    write_key,
)
from estsuite_testing.raw_client import Client, b64

PASSWORD = "correct horse battery"


def self_signed(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return built, key


def device(
    name: str,
    maker: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    attribute: x509.ObjectIdentifier = NameOID.COMMON_NAME,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(attribute, name)]))
        .issuer_name(maker[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(maker[1].public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(maker[1], SHA256())
    )
    return built, key


class World:
    """A running suite, a maker of devices, a client."""

    def __init__(
        self,
        stack: Stack,
        maker: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
        folder: Path,
    ) -> None:
        self.stack, self.maker, self.folder = stack, maker, folder
        self.client = Client.of(stack)
        self.basic = self.client.basic
        self.secrets: dict[str, str] = {}

    def write(
        self, name: str, pair: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
    ) -> ssl.SSLContext:
        file = self.folder / f"{name}.pem"
        file.write_bytes(pair[0].public_bytes(Encoding.PEM))
        return self.stack.client_context(file, write_key(self.folder / f"{name}.key", pair[1]))

    async def enrolled(self, name: str) -> ssl.SSLContext:
        """A client context with a certificate of the suite."""
        key, csr = make_csr(name)
        answer = await self.client.enroll(b64(csr))
        assert answer.status == 200, answer.text
        return self.write(name, (certificate_in(answer.body), key))


@contextlib.asynccontextmanager
async def ways(folder: Path) -> AsyncIterator[World]:
    """Such a suite, for as long as the context lasts."""
    maker = self_signed("maker root")
    pem = maker[0].public_bytes(Encoding.PEM).decode().strip().replace("\n", "\n      ")
    policy = folder / "policy.yaml"
    policy.write_text(Path(__file__).with_name("ways.yaml").read_text().replace("MAKER", pem))
    users, kek = folder / "users.yaml", folder / "kek.yaml"
    digests = {a: verifier("alice", "est", PASSWORD, a) for a in ("MD5", "SHA-256")}
    users.write_text(
        f"users:\n  alice:\n    argon2id: '{HASHER.hash(PASSWORD)}'\n    digest: {digests}\n"
        "  bob: {}\n"
    )
    secret = base64.b64encode(bytes(range(32))).decode()
    kek.write_text(f"device-kek: {secret}\n")
    for file in (users, kek):
        file.chmod(0o600)
    overrides = {
        "est-frontend": {
            "users_file": str(users),
            "keygen_secrets_file": str(kek),
            "reload_every_s": 0.2,
        },
        "ca-signer": {"reload_every_s": 0.2},
    }
    stack = await start_stack(folder / "suite", overrides=overrides, policy=policy)
    config = str(stack.layout.config_file("ca-signer"))
    world = World(stack, maker, folder)
    try:
        for name in ("twice", "registrar"):
            create = ("secret", "create", "--id", name, "--config", config)
            world.secrets[name] = (await stack.suite.run("ca-signer", *create)).strip()
        yield world
    finally:
        await stop_stack(stack)


def basic(name: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()
