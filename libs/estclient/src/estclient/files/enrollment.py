"""One enrollment or renewal into files: request, verify what came back, store it.

What a server returns is stored only when it leads to a root of the trust file, is valid now and is
for the key of this side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.agent.bundle import sent_chain, verify_chain
from estclient.agent.fetched import fetched_key
from estclient.errors import ServerRefused
from estclient.est.client import Enrolled, ESTClient, Limits
from estclient.est.keys import PrivateKey, csr_like, make_csr
from estclient.est.trust_anchors import take_up
from estclient.files.credential_files import (
    CredentialFiles,
    is_key_of,
    key_in,
    read_chain,
    read_key,
    write_chain,
    write_key,
)
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.pki.profile import KeyAlgorithm

_NOT_YET = 409


@dataclass(frozen=True)
class Server:
    """Where to enroll, and what to trust there."""

    urls: tuple[str, ...]
    trust: Path
    label: str | None = None
    wait_s: float = 300

    def client(
        self,
        clock: Clock,
        *,
        credential: tuple[Path, Path] | None = None,
        secret: tuple[str, str] | None = None,
        token: str | None = None,
    ) -> ESTClient:
        """Return a client with one way to authenticate, or none."""
        return ESTClient(
            self.urls,
            trust=self.trust,
            label=self.label,
            credential=credential,
            secret=secret,
            token=token,
            limits=Limits(pending_limit_s=self.wait_s),
            clock=clock,
        )


@dataclass(frozen=True)
class Stored:
    """What was stored: the chain as the service sends it."""

    chain: tuple[x509.Certificate, ...]
    correlation_id: str | None
    new_key: bool


def request_for(key: PrivateKey, subject: str, san: tuple[str, ...]) -> bytes:
    """Return a certification request (DER).

    Raises:
        ConfigurationError: a name that is none.
    """
    try:
        return make_csr(key, subject, san)
    except ValueError as exc:
        raise ConfigurationError(f"the request cannot be made: {exc}") from exc


async def enroll(
    client: ESTClient,
    server: Server,
    files: CredentialFiles,
    *,
    subject: str,
    san: tuple[str, ...],
    algorithm: KeyAlgorithm,
    clock: Clock,
) -> Stored:
    """Get a first certificate; the key is made where its file does not exist.

    Raises:
        ConfigurationError: a file or a name cannot be used, or there is a certificate already.
        ESTClientError: refused, not reached, or not what was asked for.
    """
    files.resume()
    if files.certificate.exists():
        raise ConfigurationError(
            f"{files.certificate} exists: estctl renew replaces it, or choose another --out"
        )
    key, made = key_in(files.key, algorithm)
    enrolled = await client.simpleenroll(request_for(key, subject, san))
    chain = await _verified(client, server, enrolled, clock)
    write_chain(files.certificate, chain)
    return Stored(chain, enrolled.correlation_id, made)


async def renew(
    client: ESTClient,
    server: Server,
    files: CredentialFiles,
    *,
    algorithm: KeyAlgorithm,
    same_key: bool,
    clock: Clock,
) -> Stored:
    """Replace a certificate by a new one for the same names, with a new key by default.

    Raises:
        ConfigurationError: a file cannot be used.
        ESTClientError: refused, not reached, or not what was asked for.
    """
    current = read_chain(files.certificate)[0]
    if same_key:
        key, made = read_key(files.key), False
    else:
        key, made = key_in(files.new_key, algorithm)[0], True
    enrolled = await client.simplereenroll(csr_like(current, key))
    chain = await _verified(client, server, enrolled, clock)
    if same_key:
        write_chain(files.certificate, chain)
    else:
        files.store(chain)
    return Stored(chain, enrolled.correlation_id, made)


async def fetch(
    client: ESTClient, server: Server, files: CredentialFiles, *, clock: Clock
) -> Stored | None:
    """Replace a certificate by the one that the server renewed by itself; None: nothing yet.

    Raises:
        ConfigurationError: a file cannot be used.
        ESTClientError: refused, not reached, or not what it must be.
    """
    current = check_pair(files)
    renewed = await client.renewed(current)
    if renewed is None:
        return None
    authorities = take_up(read_chain(server.trust), await client.cacerts(), now=clock.now())
    chain = verify_chain(renewed.certificate, authorities, now=clock.now())
    holder = (current, read_key(files.key))
    key = fetched_key(renewed, [holder], authorities, now=clock.now())
    sent = tuple(sent_chain(chain, authorities))
    if renewed.sealed_key is None:
        write_chain(files.certificate, sent)
    else:
        write_key(files.new_key, key)
        files.store(sent)
    return Stored(sent, renewed.correlation_id, renewed.sealed_key is not None)


async def prove(client: ESTClient) -> bool:
    """Prove the use of a certificate; False where the server knows no rotation to it yet.

    Raises:
        ESTClientError: refused or not reached.
    """
    try:
        await client.prove_use()
    except ServerRefused as exc:
        if exc.status == _NOT_YET:
            return False
        raise
    return True


def check_pair(files: CredentialFiles) -> x509.Certificate:
    """Return the certificate, finishing an interrupted replacement first.

    Raises:
        ConfigurationError: a file cannot be used, or the key is not the certificate's.
    """
    files.resume()
    certificate = read_chain(files.certificate)[0]
    if not is_key_of(read_key(files.key), certificate):
        raise ConfigurationError(f"{files.key} is not the key of {files.certificate}")
    return certificate


def read_request(file: Path) -> bytes:
    """Return the DER of a PKCS#10 request in PEM or DER.

    Raises:
        ConfigurationError: unreadable, or not one.
    """
    try:
        octets = file.read_bytes()
        if b"-----BEGIN" in octets:
            return x509.load_pem_x509_csr(octets).public_bytes(Encoding.DER)
        x509.load_der_x509_csr(octets)
    except OSError as exc:
        raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{file} is not a certification request") from exc
    return octets


async def enroll_request(
    client: ESTClient, server: Server, csr: bytes, out: Path, *, clock: Clock
) -> Stored:
    """Get a certificate for a request whose key is kept in another place.

    Raises:
        ConfigurationError: the file cannot be written.
        ESTClientError: refused, not reached, or not what was asked for.
    """
    enrolled = await client.simpleenroll(csr)
    chain = await _verified(client, server, enrolled, clock)
    write_chain(out, chain)
    return Stored(chain, enrolled.correlation_id, False)


async def _verified(
    client: ESTClient, server: Server, enrolled: Enrolled, clock: Clock
) -> tuple[x509.Certificate, ...]:
    """Return the certificate and what a service sends with it.

    ``ESTClient`` has compared its key with that of the request.
    """
    roots = read_chain(server.trust)
    authorities = take_up(roots, await client.cacerts(), now=clock.now())
    chain = verify_chain(enrolled.certificate, authorities, now=clock.now())
    return tuple(sent_chain(chain, authorities))
