"""What a foreign client does with a suite: one function for each row of the table of results.

``World`` is a suite whose default label takes every key that the suite knows and every credential
but Digest, which has a label of its own: some clients know no labels, some take the first challenge.
What a client brings home is checked with openssl.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from est_frontend.auth.password_file import HASHER
from estcore.est.certs_only import certs_only
from estcore.est.http_digest import verifier
from estcore.est.transfer import encode_response
from estsuite_testing.e2e_stack import Stack, same_key, start_stack, stop_stack
from estsuite_testing.foreign.calls import Call, ForeignClient, Operation, Result

POLICY = Path(__file__).with_name("policy.yaml")
PROFILES = Path(__file__).with_name("profiles.yaml")
USER, PASSWORD = "alice", "correct horse battery"
_PIECE = 1024
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Kind = Literal["ec-p256", "rsa-2048", "rsa-4096"]


@dataclass
class World:
    """A running suite and a folder."""

    stack: Stack
    folder: Path

    async def call(
        self, client: ForeignClient, operation: Operation, *, csr: Path | None = None, **more: Any
    ) -> Result:
        """Let a client carry out one operation."""
        layout = self.stack.layout
        call = Call(
            operation=operation,
            port=layout.ports.est,
            root=layout.root_file,
            issuing=layout.ca / "issuing.pem",
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            csr=csr,
            **more,
        )
        return await asyncio.to_thread(client.run, call)

    def secret(self) -> dict[str, str]:
        """The enrollment secret, as a user and a password."""
        return {"user": "load", "password": self.stack.secret}

    def request(self, name: str, kind: Kind = "ec-p256") -> Requested:
        """A new key and a CSR for it, as files."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        key = _new_key(kind)
        csr = (
            x509.CertificateSigningRequestBuilder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, SHA256())
        )
        made = Requested(name, key, folder / "csr.pem", folder / "key.pem", folder / "cert.pem")
        made.csr.write_bytes(csr.public_bytes(Encoding.PEM))
        made.key_file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return made

    def check(self, result: Result, requested: Requested) -> x509.Certificate:
        """Check the one certificate of an answer, and keep it as a file for the next call."""
        assert len(result.certificates) == 1, result
        certificate = result.certificates[0]
        key: Any = requested.key
        if result.generated_key is not None:
            key = load_pem_private_key(result.generated_key, None)
        assert same_key(certificate, key)
        assert certificate.subject.rfc4514_string() == f"CN={requested.name}"
        requested.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        layout = self.stack.layout
        subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-CAfile", layout.root_file),
                *("-untrusted", layout.ca / "issuing.pem", requested.certificate),
            ],
            check=True,
            capture_output=True,
        )
        return certificate


@dataclass(frozen=True)
class Requested:
    """A key, its CSR, and where the certificate goes."""

    name: str
    key: Key
    csr: Path
    key_file: Path
    certificate: Path

    def credential(self) -> dict[str, Path]:
        """Certificate and key, to authenticate with."""
        return {"certificate": self.certificate, "key": self.key_file}


def _new_key(kind: Kind) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if kind == "ec-p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))


@asynccontextmanager
async def running_world(folder: Path) -> AsyncIterator[World]:
    """Such a suite for as long as the context lasts."""
    users = folder / "users.yaml"
    digests = {"MD5": verifier(USER, "est", PASSWORD, "MD5")}
    users.touch(mode=0o600)
    users.write_text(
        f"users:\n  {USER}:\n    argon2id: '{HASHER.hash(PASSWORD)}'\n    digest: {digests}\n"
    )
    overrides = {"est-frontend": {"users_file": str(users)}}
    stack = await start_stack(
        folder / "suite", overrides=overrides, policy=POLICY, profiles=PROFILES
    )
    try:
        yield World(stack, folder)
    finally:
        await stop_stack(stack)


def _slug(client: ForeignClient) -> str:
    return client.name.lower().replace(" ", "-")


async def cacerts(world: World, client: ForeignClient) -> None:
    """The CA certificates arrive: all of them, or the first, where the client returns one."""
    found = {c.serial_number for c in (await world.call(client, "cacerts")).certificates}
    files = (world.stack.layout.root_file, world.stack.layout.ca / "issuing.pem")
    ours = {x509.load_pem_x509_certificate(file.read_bytes()).serial_number for file in files}
    assert found
    assert found <= ours
    assert len(found) == (1 if client.name == "est-ca" else len(ours))


async def csrattrs(world: World, client: ForeignClient) -> None:
    """The client reads what a CSR must have, which includes an object identifier."""
    assert (await world.call(client, "csrattrs")).attributes.strip()


async def enroll_with_secret(world: World, client: ForeignClient) -> None:
    """HTTP Basic with an enrollment secret."""
    made = world.request(f"dev-secret-{_slug(client)}")
    world.check(await world.call(client, "simpleenroll", csr=made.csr, **world.secret()), made)


async def enroll_with_password(world: World, client: ForeignClient) -> None:
    """HTTP Basic with a user's password."""
    made = world.request(f"dev-password-{_slug(client)}")
    who = {"user": USER, "password": PASSWORD}
    world.check(await world.call(client, "simpleenroll", csr=made.csr, **who), made)


async def enroll_with_digest(world: World, client: ForeignClient) -> None:
    """HTTP Digest with MD5, on a label that offers nothing else."""
    made = world.request(f"dev-digest-{_slug(client)}")
    who: dict[str, Any] = {"user": USER, "password": PASSWORD, "digest": True, "label": "digest"}
    world.check(await world.call(client, "simpleenroll", csr=made.csr, **who), made)


async def enroll_with_certificate(world: World, client: ForeignClient) -> None:
    """A certificate that was issued before authenticates the enrollment of another name."""
    first = world.request("dev-holder")
    world.check(await world.call(client, "simpleenroll", csr=first.csr, **world.secret()), first)
    made = world.request(f"dev-held-{_slug(client)}")
    more = first.credential()
    world.check(await world.call(client, "simpleenroll", csr=made.csr, **more), made)


async def reenroll(world: World, client: ForeignClient) -> None:
    """Renewal with a new key, and then with the renewed certificate and another new key."""
    name = f"dev-renewed-{_slug(client)}"
    first = world.request(name)
    world.check(await world.call(client, "simpleenroll", csr=first.csr, **world.secret()), first)
    serials = set()
    for _ in range(2):
        second = world.request(name)
        answer = await world.call(client, "simplereenroll", csr=second.csr, **first.credential())
        serials.add(world.check(answer, second).serial_number)
        first = second
    assert len(serials) == 2


async def serverkeygen(world: World, client: ForeignClient) -> None:
    """A key made by the server arrives with its certificate."""
    made = world.request(f"dev-generated-{_slug(client)}")
    result = await world.call(client, "serverkeygen", csr=made.csr, **world.secret())
    assert result.generated_key is not None
    world.check(result, made)


async def rsa_answers(world: World, client: ForeignClient) -> None:
    """Certificates for RSA keys of 2048 and 4096 bits, whose base64 is long."""
    for kind in ("rsa-2048", "rsa-4096"):
        made = world.request(f"dev-{kind}-{_slug(client)}", kind)
        world.check(await world.call(client, "simpleenroll", csr=made.csr, **world.secret()), made)


async def answer_of_1024_characters(world: World, client: ForeignClient) -> None:
    """An answer whose base64 has 1,024 characters: a certificate for a name of the fitting length."""
    name = f"dev-k-{_slug(client)}"
    for _ in range(20):
        made = world.request(name, "rsa-2048")
        answer = await world.call(client, "simpleenroll", csr=made.csr, **world.secret())
        certificate = world.check(answer, made)
        length = len(encode_response(certs_only([certificate.public_bytes(Encoding.DER)])))
        if length == _PIECE:
            return
        # The name stands in it twice, and four characters are three octets.
        more = (_PIECE - length) * 3 // 8
        name = name + "x" * more if more > 0 else name[: more or -1]
    raise AssertionError(f"no answer of {_PIECE} characters was made")


async def _version(world: World, client: ForeignClient, tls: str) -> None:
    made = world.request(f"dev-tls{tls[-1]}-{_slug(client)}")
    more: dict[str, Any] = {**world.secret(), "tls": tls}
    world.check(await world.call(client, "simpleenroll", csr=made.csr, **more), made)
    await world.stack.until_recorded()
    versions = {
        record["origin"].get("tls_version")
        for record in await world.stack.records()
        if record.get("target", {}).get("subject") == f"CN={made.name}"
        and record["action"] == "certificate.issue"
    }
    assert versions == {f"TLSv{tls}"}


async def tls_1_2(world: World, client: ForeignClient) -> None:
    """Enrollment over TLS 1.2; the audit record says so."""
    await _version(world, client, "1.2")


async def tls_1_3(world: World, client: ForeignClient) -> None:
    """Enrollment over TLS 1.3; the audit record says so."""
    await _version(world, client, "1.3")


async def wrong_secret(world: World, client: ForeignClient) -> None:
    """A wrong secret gets no certificate."""
    made = world.request(f"dev-wrong-{_slug(client)}")
    await world.call(client, "simpleenroll", csr=made.csr, user="load", password="wrong")


Scenario = Callable[[World, ForeignClient], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    "cacerts": cacerts,
    "csrattrs": csrattrs,
    "enroll: secret": enroll_with_secret,
    "enroll: password": enroll_with_password,
    "enroll: Digest": enroll_with_digest,
    "enroll: certificate": enroll_with_certificate,
    "reenroll, twice": reenroll,
    "serverkeygen": serverkeygen,
    "RSA-2048 and 4096": rsa_answers,
    "1,024 characters": answer_of_1024_characters,
    "TLS 1.2": tls_1_2,
    "TLS 1.3": tls_1_3,
    "wrong secret": wrong_secret,
}
