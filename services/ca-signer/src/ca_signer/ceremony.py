"""``ca-signer ca …``: making a root, an issuing CA and an infrastructure CA in a folder.

The root signs twice: the issuing CA, whose key the signer uses, and the infrastructure CA,
which gives est-frontend its own TLS certificate, so that the suite never needs itself to
start. Every key is encrypted at rest. On a real deployment this runs on an offline machine;
only ``issuing.*`` and ``chain.pem`` go to the signer.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
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
from estcore.errors import ConfigurationError
from estcore.runtime.settings import read_secret

ROOT_YEARS, ISSUING_YEARS = 20, 10
_YEAR = dt.timedelta(days=365)


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def init(folder: Path, *, name: str, passphrase_file: Path, clock: Clock) -> None:
    """Make root, issuing and infrastructure CA in ``folder``.

    Raises:
        ConfigurationError: the folder holds a CA already.
    """
    if (folder / "root.pem").exists():
        raise ConfigurationError(f"{folder} holds a CA already", code="ca.exists")
    passphrase = read_secret(passphrase_file, "the passphrase").encode()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = clock.now().replace(microsecond=0)
    root = _root(f"{name} Root CA", name, now)
    issuing = _intermediate(f"{name} Issuing CA 1", name, root, now)
    infrastructure = _intermediate(f"{name} Infrastructure CA", name, root, now)
    for stem, authority in (
        ("root", root),
        ("issuing", issuing),
        ("infrastructure", infrastructure),
    ):
        _write_key(folder / f"{stem}.key", authority.key, passphrase)
        (folder / f"{stem}.pem").write_bytes(_pem(authority.certificate))
    (folder / "chain.pem").write_bytes(_pem(root.certificate))


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
    authority = _load(folder, "infrastructure", passphrase)
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now().replace(microsecond=0)
    builder = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), key, now)
        .issuer_name(authority.certificate.subject)
        .not_valid_after(
            min(now + dt.timedelta(days=days), authority.certificate.not_valid_after_utc)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_aki(authority.certificate), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
        )
    )
    certificate = builder.sign(authority.key, SHA256())
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    (out / "server.pem").write_bytes(_pem(certificate) + _pem(authority.certificate))
    _private_file(
        out / "server.key",
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _root(common_name: str, organization: str, now: dt.datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(common_name, organization)
    builder = (
        _builder(subject, key, now)
        .issuer_name(subject)
        .not_valid_after(now + ROOT_YEARS * _YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
    )
    return _Authority(builder.sign(key, SHA384()), key)


def _intermediate(
    common_name: str, organization: str, root: _Authority, now: dt.datetime
) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(common_name, organization), key, now)
        .issuer_name(root.certificate.subject)
        .not_valid_after(now + ISSUING_YEARS * _YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(_aki(root.certificate), critical=False)
    )
    return _Authority(builder.sign(root.key, SHA384()), key)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(ids.new_serial_number())
        .not_valid_before(now)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        ]
    )


def _usage(*, leaf: bool) -> x509.KeyUsage:
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


def _aki(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski.value)


def _load(folder: Path, stem: str, passphrase: bytes) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{stem}.pem").read_bytes())
        key = load_pem_private_key((folder / f"{stem}.key").read_bytes(), passphrase)
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigurationError(f"cannot open {stem} in {folder}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{stem}.key is not an EC key")
    return _Authority(certificate, key)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> None:
    _private_file(
        path,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)),
    )


def _private_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
