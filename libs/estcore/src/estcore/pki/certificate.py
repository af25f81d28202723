"""Certificates: TBS built by a lint copy, final DER assembled from TBS and signature.

The builder of ``cryptography`` only hands out signed certificates. So it signs with a
throw-away key of the issuer's kind: the result is the lint copy, and its TBS are the exact
bytes the real key signs later (docs/adr/0004). Nothing here holds a real key.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificateIssuerPublicKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from estcore.pki import der as der_codec
from estcore.pki.csr import CertificationRequest
from estcore.pki.names import common_names
from estcore.pki.profile import Profile

EKU_OIDS = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_CURVE_HASHES: dict[int, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    256: hashes.SHA256,
    384: hashes.SHA384,
    521: hashes.SHA512,
}
SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_BASIC_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)


@dataclass(frozen=True)
class IssuerCertificate:
    """The issuer as certificates name it."""

    issuer_id: str
    certificate: x509.Certificate

    @cached_property
    def subject(self) -> x509.Name:
        """The issuer_name that goes into certificates."""
        return self.certificate.subject

    @cached_property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """The AKI extension: the issuer's own SKI (RFC 5280 section 4.2.1.1)."""
        ski = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski.value)

    @cached_property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key that verifies what this issuer signs."""
        return self.certificate.public_key()  # type: ignore[return-value] # a CA's key can sign

    @cached_property
    def not_after(self) -> dt.datetime:
        """End of the issuer's validity."""
        return self.certificate.not_valid_after_utc

    @cached_property
    def der(self) -> bytes:
        """The issuer's own certificate."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True)
class LintCopy:
    """A certificate signed by a throw-away key: everything but the signature is final."""

    certificate: x509.Certificate
    tbs: bytes
    signature_algorithm: bytes


def signing_hash(public_key: CertificatePublicKeyTypes) -> SigningHash | None:
    """Return the hash an issuer key signs with; None where the scheme has its own (Ed25519)."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _CURVE_HASHES[public_key.curve.key_size]()
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return None
    return hashes.SHA256()


def throw_away_key(public_key: CertificatePublicKeyTypes) -> CertificateIssuerPrivateKeyTypes:
    """Return a new private key of the same kind as ``public_key``, for lint copies only."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(public_key.curve)
    if isinstance(public_key, rsa.RSAPublicKey):
        return rsa.generate_private_key(65537, public_key.key_size)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return ed25519.Ed25519PrivateKey.generate()
    raise TypeError(f"no issuer has a key like {type(public_key).__name__}")


def granted_san(
    request: CertificationRequest, profile: Profile
) -> x509.SubjectAlternativeName | None:
    """Return the SAN the certificate will carry: the CSR's, or the CN where the profile says so."""
    if request.san_extension is not None:
        return request.san_extension
    names = common_names(request.subject)
    if profile.common_name_to_dns_san and names:
        return x509.SubjectAlternativeName([x509.DNSName(names[0])])
    return None


def build(
    request: CertificationRequest,
    *,
    profile: Profile,
    issuer: IssuerCertificate,
    serial_number: int,
    now: dt.datetime,
    lint_key: CertificateIssuerPrivateKeyTypes,
) -> LintCopy:
    """Return the lint copy for ``request`` under ``profile`` (RFC 5280 section 4).

    The lifetime counts from ``now``; notBefore lies ``profile.backdating`` earlier; notAfter
    never passes the issuer's own.
    """
    now = now.replace(microsecond=0)
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=request.subject,
        public_key=request.public_key,
        serial_number=serial_number,
        not_valid_before=now - profile.backdating,
        not_valid_after=min(now + profile.lifetime, issuer.not_after),
    )
    for extension, critical in extensions(request, profile, issuer):
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(lint_key, signing_hash(lint_key.public_key()))
    der = certificate.public_bytes(Encoding.DER)
    tbs, algorithm, _ = der_codec.children(der)
    return LintCopy(certificate=certificate, tbs=tbs, signature_algorithm=algorithm)


def extensions(
    request: CertificationRequest, profile: Profile, issuer: IssuerCertificate
) -> list[tuple[x509.ExtensionType, bool]]:
    """Return the exact extensions, in order, with criticality. The CSR only supplies the SAN."""
    found: list[tuple[x509.ExtensionType, bool]] = [
        (_BASIC_CONSTRAINTS, True),
        (key_usage(profile), True),
        (x509.ExtendedKeyUsage([EKU_OIDS[name] for name in profile.extended_key_usage]), False),
        (x509.SubjectKeyIdentifier(_key_identifier(request.spki)), False),
        (issuer.key_identifier, False),
    ]
    san = granted_san(request, profile)
    if san is not None:
        # RFC 5280 section 4.2.1.6: critical when the subject is empty.
        found.append((san, not request.subject.rdns))
    if profile.crl_url:
        found.append((_crl_distribution(profile.crl_url), False))
    access = _information_access(profile)
    if access is not None:
        found.append((access, False))
    return found


def key_usage(profile: Profile) -> x509.KeyUsage:
    """Return the KeyUsage extension of the profile; certificate and CRL signing never set."""
    names = profile.key_usage
    return x509.KeyUsage(
        digital_signature="digital_signature" in names,
        content_commitment="content_commitment" in names,
        key_encipherment="key_encipherment" in names,
        key_agreement="key_agreement" in names,
        data_encipherment=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(spki: bytes) -> bytes:
    # RFC 7093 section 2 method 1: leftmost 160 bits of the SHA-256 of the key bits.
    _, key_bits = der_codec.children(spki)
    _, start, end = der_codec.header(key_bits, 0)
    return sha256(key_bits[start + 1 : end]).digest()[:20]


def _crl_distribution(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def _information_access(profile: Profile) -> x509.AuthorityInformationAccess | None:
    places = (
        (AuthorityInformationAccessOID.OCSP, profile.ocsp_url),
        (AuthorityInformationAccessOID.CA_ISSUERS, profile.issuer_url),
    )
    found = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in places
        if url
    ]
    return x509.AuthorityInformationAccess(found) if found else None


def assemble(tbs: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Return the certificate made of its three parts (RFC 5280 section 4.1)."""
    bits = der_codec.tlv(der_codec.BIT_STRING, b"\x00", signature)
    return der_codec.tlv(der_codec.SEQUENCE, tbs, signature_algorithm, bits)


def tbs_signature_algorithm(tbs: bytes) -> bytes:
    """Return the AlgorithmIdentifier inside stored TBS bytes, which the outer one must equal."""
    return der_codec.children(tbs)[2]
