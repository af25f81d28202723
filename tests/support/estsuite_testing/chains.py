"""Certificates of any shape, valid around a noon long past."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certificate(
    name: str,
    issuer: Pair | None = None,
    *,
    csr: x509.CertificateSigningRequest | None = None,
    names: tuple[str, ...] = (),
    ca: bool = False,
    usage: x509.ObjectIdentifier | None = None,
    identified: bool = True,
    serial_number: int | None = None,
) -> Pair:
    """A certificate and its key; ``identified`` False leaves the key identifiers out.

    ``csr`` gives the certificate its public key; the key returned is then a different one.
    """
    if usage is None and not ca:
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
    key = ec.generate_private_key(ec.SECP256R1())
    public = csr.public_key() if csr is not None else key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    parent, parent_key = issuer or (None, key)
    lasts = dt.timedelta(days=365) if ca else HOUR
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.subject if parent else subject)
        .public_key(public)
        .serial_number(serial_number or x509.random_serial_number())
        .not_valid_before(NOON - lasts)
        .not_valid_after(NOON + lasts)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True
        )
    )
    if identified:
        ski = x509.SubjectKeyIdentifier.from_public_key(public)
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key())
        builder = builder.add_extension(ski, critical=False).add_extension(aki, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        san = x509.SubjectAlternativeName([x509.DNSName(n) for n in names])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(parent_key, hashes.SHA256()), key


def make_request(name: str, *, is_ca: bool = False) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Return a key and a CSR in PEM for a DNS name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
    )
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    return key, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
