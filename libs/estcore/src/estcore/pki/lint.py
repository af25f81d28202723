"""Lint before sign: fast checks of our own that a certificate is exactly what was decided.

Run on the lint copy, so a failure costs no signature. pkilint judges the same certificates in
the tests; it is too slow for the hot path.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estcore.errors import LintFailed
from estcore.pki import der as der_codec
from estcore.pki.certificate import IssuerCertificate, LintCopy, extensions
from estcore.pki.csr import CertificationRequest
from estcore.pki.profile import Profile

SERIAL_OCTETS = 18


def lint(
    copy: LintCopy,
    *,
    request: CertificationRequest,
    profile: Profile,
    issuer: IssuerCertificate,
    now: dt.datetime,
) -> None:
    """Check the lint copy against request, profile and issuer.

    Does not check whether the names were allowed: that was decided before.

    Raises:
        LintFailed: with the name of the first check that failed.
    """
    certificate = copy.certificate
    checks = (
        ("version", certificate.version is x509.Version.v3),
        ("serial_number", serial_number_is_ours(certificate.serial_number)),
        ("issuer_name", certificate.issuer == issuer.subject),
        ("subject", certificate.subject == request.subject),
        ("public_key", _spki_is_the_requests(copy.tbs, request)),
        ("validity", _validity(certificate, profile, issuer, now)),
        ("outer_algorithm", der_codec.children(copy.tbs)[2] == copy.signature_algorithm),
        ("extensions", _extensions(certificate, request, profile, issuer)),
        ("not_issuers_key", _not_the_issuers_key(request, issuer)),
    )
    for name, passed in checks:
        if not passed:
            raise LintFailed(f"lint refuses the certificate: {name}", code=f"lint.{name}")


def serial_number_is_ours(serial_number: int) -> bool:
    """Octet 0x01 and 17 more: positive, at most 20 octets (RFC 5280 section 4.1.2.2)."""
    octets = (serial_number.bit_length() + 7) // 8
    return octets == SERIAL_OCTETS and serial_number >> 8 * (SERIAL_OCTETS - 1) == 1


def _spki_is_the_requests(tbs: bytes, request: CertificationRequest) -> bool:
    # version, serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
    return der_codec.children(tbs)[6] == request.spki


def _validity(
    certificate: x509.Certificate,
    profile: Profile,
    issuer: IssuerCertificate,
    now: dt.datetime,
) -> bool:
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    start = now.replace(microsecond=0)
    return (
        before == start - profile.backdating
        and after == min(start + profile.lifetime, issuer.not_after)
        and before < after <= issuer.not_after
    )


def _extensions(
    certificate: x509.Certificate,
    request: CertificationRequest,
    profile: Profile,
    issuer: IssuerCertificate,
) -> bool:
    found = [(e.value, e.critical) for e in certificate.extensions]
    return found == extensions(request, profile, issuer)


def _not_the_issuers_key(request: CertificationRequest, issuer: IssuerCertificate) -> bool:
    own = issuer.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return request.spki != own
