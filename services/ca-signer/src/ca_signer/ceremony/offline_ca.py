"""``ca-signer ca …``: making a root, an issuing CA and an infrastructure CA in a folder.

The root signs twice: the issuing CA, whose key the signer uses, and the infrastructure CA,
which gives est-frontend its own TLS certificate, so that the suite never needs itself to
start. Every key is encrypted at rest. On a real deployment this runs on an offline machine;
only ``issuing.*`` and ``chain.pem`` go to the signer. Where the issuing key was made in a token,
its request is given (``--issuing-csr``), and there is no ``issuing.key``.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estcore import ids
from estcore.clock import Clock
from estcore.errors import ConfigurationError, WeakKey
from estcore.pki.keys import key_algorithm
from estcore.pki.parsers import READING_ERRORS, describe
from estcore.pki.weak_keys import check_strength
from estcore.runtime.secret_files import read_secret, read_secret_octets

ROOT_YEARS, ISSUING_YEARS = 20, 10
_YEAR = dt.timedelta(days=365)


@dataclass(frozen=True)
class OfflineCA:
    """A CA certificate and its key, in memory for the length of a ceremony."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def init(
    folder: Path,
    *,
    name: str,
    passphrase_file: Path,
    clock: Clock,
    issuing_csr: Path | None = None,
    generation: int = 1,
) -> None:
    """Make root, issuing and infrastructure CA in ``folder``.

    ``issuing_csr`` is a request made with the issuing key; only its public key is used.
    ``generation`` goes into the names, so that no two CAs of an organization share one.

    Raises:
        ConfigurationError: the folder holds a CA already, or the request does not verify.
    """
    if (folder / "root.pem").exists():
        raise ConfigurationError(f"{folder} holds a CA already", code="ca.exists")
    passphrase = read_secret(passphrase_file, "the passphrase").encode()
    theirs = requested_key(issuing_csr) if issuing_csr else None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = clock.now().replace(microsecond=0)
    later = f" {generation}" if generation > 1 else ""
    root = _root(f"{name} Root CA{later}", name, now)
    keys: dict[str, ec.EllipticCurvePrivateKey] = {"root": root.key}
    certificates = {"root": root.certificate}
    for stem, common_name in (
        ("issuing", f"Issuing CA {generation}"),
        ("infrastructure", f"Infrastructure CA{later}"),
    ):
        public_key = theirs if stem == "issuing" else None
        if public_key is None:
            keys[stem] = ec.generate_private_key(ec.SECP256R1())
            public_key = keys[stem].public_key()
        certificates[stem] = intermediate(f"{name} {common_name}", name, root, now, public_key)
    for stem, key in keys.items():
        write_key(folder / f"{stem}.key", key, passphrase)
    for stem, certificate in certificates.items():
        (folder / f"{stem}.pem").write_bytes(pem(certificate))
    (folder / "chain.pem").write_bytes(pem(root.certificate))


def requested_key(path: Path) -> CertificatePublicKeyTypes:
    """Return the public key of a certification request whose holder proved to have it.

    Raises:
        ConfigurationError: unreadable, wrongly signed, or of a kind that cannot be an issuer's.
    """
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        valid, key = request.is_signature_valid, request.public_key()
        key_algorithm(key)
        check_strength(key)
    except OSError as exc:
        raise ConfigurationError(f"cannot use the request in {path}") from exc
    except READING_ERRORS as exc:
        reason = exc.reason if isinstance(exc, WeakKey) else describe(exc)
        raise ConfigurationError(f"cannot use the request in {path}: {reason}") from exc
    if not valid:
        raise ConfigurationError(f"the signature of the request in {path} is wrong")
    return key


def server_certificate(
    folder: Path,
    *,
    out: Path,
    names: list[str],
    passphrase_file: Path,
    days: int,
    clock: Clock,
) -> None:
    """Make a TLS server key and certificate for est-frontend from the infrastructure CA.

    Writes ``server.pem`` (leaf, then infrastructure CA) and ``server.key`` into ``out``.
    """
    passphrase = read_secret(passphrase_file, "the passphrase").encode()
    decision_context = open_ca(folder, "infrastructure", passphrase)
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now().replace(microsecond=0)
    builder = (
        new_certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), key.public_key(), now
        )
        .issuer_name(decision_context.certificate.subject)
        .not_valid_after(
            min(now + dt.timedelta(days=days), decision_context.certificate.not_valid_after_utc)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issued_by(decision_context.certificate), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
        )
    )
    certificate = builder.sign(decision_context.key, SHA256())
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    (out / "server.pem").write_bytes(pem(certificate) + pem(decision_context.certificate))
    _private_file(
        out / "server.key",
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _root(common_name: str, organization: str, now: dt.datetime) -> OfflineCA:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(common_name, organization)
    builder = (
        new_certificate(subject, key.public_key(), now)
        .issuer_name(subject)
        .not_valid_after(now + ROOT_YEARS * _YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(leaf=False), critical=True)
    )
    return OfflineCA(builder.sign(key, SHA384()), key)


def intermediate(
    common_name: str,
    organization: str,
    root: OfflineCA,
    now: dt.datetime,
    key: CertificatePublicKeyTypes,
) -> x509.Certificate:
    """Return the certificate of a CA under the root that issues to no other CA."""
    builder = (
        new_certificate(_name(common_name, organization), key, now)
        .issuer_name(root.certificate.subject)
        .not_valid_after(now + ISSUING_YEARS * _YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(leaf=False), critical=True)
        .add_extension(issued_by(root.certificate), critical=False)
    )
    return builder.sign(root.key, SHA384())


def new_certificate(
    subject: x509.Name, key: CertificatePublicKeyTypes, now: dt.datetime
) -> x509.CertificateBuilder:
    """Return the beginning of a certificate: whose, a serial number, from when on."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(ids.new_serial_number())
        .not_valid_before(now)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        ]
    )


def key_usage(*, leaf: bool) -> x509.KeyUsage:
    """Return what a CA's key is for, or that of its servers."""
    return x509.KeyUsage(
        digital_signature=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def issued_by(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the AKI of what the CA with this certificate signs."""
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski.value)


def open_ca(folder: Path, stem: str, passphrase: bytes) -> OfflineCA:
    """Return a CA of a folder.

    Raises:
        ConfigurationError: its files cannot be read or opened.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{stem}.pem").read_bytes())
        key = load_pem_private_key(
            read_secret_octets(folder / f"{stem}.key", "the CA key"), passphrase
        )
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigurationError(f"cannot open {stem} in {folder}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{stem}.key is not an EC key")
    return OfflineCA(certificate, key)


def write_key(path: Path, key: CertificateIssuerPrivateKeyTypes, passphrase: bytes) -> None:
    """Write a key, encrypted, readable by its owner only."""
    _private_file(
        path,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)),
    )


def _private_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)
