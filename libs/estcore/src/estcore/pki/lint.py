"""Lint before sign: fast checks of our own that a certificate is exactly what was decided.

Run on the lint copy, so a failure costs no signature. pkilint checks the same certificates
in the tests; it is too slow for the hot path.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509

from estcore.errors import InvalidCSR, LintFailed, MalformedRequest
from estcore.pki import der as der_codec
from estcore.pki.certificate import CertificateTemplate, LintCopy
from estcore.pki.csr import CertificationRequest
from estcore.pki.name_grammar import DNSRules, check_certified_names

SERIAL_OCTETS = 18
SUBJECT_ALTERNATIVE_NAME = x509.SubjectAlternativeName.oid
_UNREADABLE = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


def lint(
    copy: LintCopy,
    *,
    request: CertificationRequest,
    template: CertificateTemplate,
    now: dt.datetime,
) -> None:
    """Check the lint copy against request, profile and issuer.

    Does not check whether the names were allowed: that was decided before.

    Raises:
        LintFailed: with the name of the first check that failed.
    """
    try:
        failed = _first_failed(copy, request, template, now)
    except (ValueError, TypeError, MalformedRequest, *_UNREADABLE) as exc:
        raise LintFailed("lint cannot read the certificate", code="lint.unreadable") from exc
    if failed is not None:
        raise LintFailed(f"lint refuses the certificate: {failed}", code=f"lint.{failed}")


def _first_failed(
    copy: LintCopy, request: CertificationRequest, template: CertificateTemplate, now: dt.datetime
) -> str | None:
    certificate = copy.certificate
    tbs = der_codec.children(copy.tbs)
    issuer = template.issuer
    before, after = template.validity(now)
    extensions = [(e.value, e.critical) for e in certificate.extensions]
    checks = (
        ("version", certificate.version is x509.Version.v3),
        ("serial_number", serial_number_is_ours(certificate.serial_number)),
        # As octets: equal names may be written with other string types.
        ("issuer_name", tbs[3] == issuer.subject_der),
        ("subject", tbs[5] == request.subject_der),
        ("public_key", tbs[6] == request.spki),
        ("not_before", certificate.not_valid_before_utc == before),
        ("not_after", before < certificate.not_valid_after_utc == after <= issuer.not_after),
        ("algorithm", tbs[2] == copy.signature_algorithm),
        ("extensions", extensions == template.extensions(request, certificate.serial_number)),
        # What reads the same may still be written otherwise, and DER has one way.
        ("encoding", tbs[7] == template.encode_extensions(extensions)),
        ("not_issuers_key", request.spki != issuer.spki),
        ("names", _names_hold(tbs[5], certificate, template)),
    )
    return next((name for name, passed in checks if not passed), None)


def _names_hold(
    subject_der: bytes, certificate: x509.Certificate, template: CertificateTemplate
) -> bool:
    """Return whether every name in the certificate is one, read from the certificate itself."""
    san = [e.value for e in certificate.extensions if e.oid == SUBJECT_ALTERNATIVE_NAME]
    profile = template.profile
    rules = DNSRules(wildcards=profile.dns_wildcards, underscores=profile.dns_underscores)
    try:
        check_certified_names(subject_der, [n for extension in san for n in extension], rules)
    except InvalidCSR:
        return False
    return True


def serial_number_is_ours(serial_number: int) -> bool:
    """Octet 0x01 and 17 more: positive, at most 20 octets (RFC 5280 section 4.1.2.2)."""
    octets = (serial_number.bit_length() + 7) // 8
    return octets == SERIAL_OCTETS and serial_number >> 8 * (SERIAL_OCTETS - 1) == 1
