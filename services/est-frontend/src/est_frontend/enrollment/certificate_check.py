"""Check of an issued certificate before it is handed out (pure).

The signer has linted and verified what it signed. This is the second look, where the certificate
leaves the suite: a wrong one, beside a generated key above all, must not reach a client.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from estcore.errors import InvariantBroken, IssuerUnavailable, MalformedRequest
from estcore.est.certs_only import read_certs_only
from estcore.pki import der as der_codec
from estcore.pki.csr import CertificationRequest
from estcore.pki.parsers import PARSER_ERRORS, load_certificate
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_UNREADABLE: tuple[type[BaseException], ...] = (*PARSER_ERRORS, MalformedRequest)
_VERSION = 0xA0
_ISSUER, _SPKI = 2, 5
"""Places in a TBSCertificate without its version."""


def check_certificate(
    certificate: bytes, csr: CertificationRequest, cacerts: bytes | None, *, correlation_id: str
) -> None:
    """Check that the certificate is for the key of the CSR and signed by its issuer.

    ``cacerts`` is the certs-only message of the issuer. Names and validity are the signer's.

    Raises:
        IssuerUnavailable: the issuer's certificates were not received yet.
        InvariantBroken: ``answer.unreadable``, ``answer.key`` or ``answer.issuer``; logged.
    """
    if cacerts is None:
        raise IssuerUnavailable("the CA certificates are not here yet", code="cacerts.unknown")
    try:
        _check(certificate, csr, _issuers(cacerts))
    except InvariantBroken as exc:
        _log(exc, correlation_id)
        raise


def check_issued(certificate: bytes, cacerts: bytes | None, *, correlation_id: str) -> None:
    """Check that a certificate made before is signed by its issuer.

    ``cacerts`` is the certs-only message of the issuer.

    Raises:
        IssuerUnavailable: the issuer's certificates were not received yet.
        InvariantBroken: ``answer.unreadable`` or ``answer.issuer``; logged.
    """
    if cacerts is None:
        raise IssuerUnavailable("the CA certificates are not here yet", code="cacerts.unknown")
    try:
        _check(certificate, None, _issuers(cacerts))
    except InvariantBroken as exc:
        _log(exc, correlation_id)
        raise


def _log(error: InvariantBroken, correlation_id: str) -> None:
    log.error(
        "issued certificate not handed out",
        extra=fields(correlation_id=correlation_id, code=error.code, reason=error.reason),
    )


@dataclass(frozen=True)
class _Issuer:
    """A CA certificate with what is needed of it again and again."""

    certificate: x509.Certificate
    subject: bytes
    key: ec.EllipticCurvePublicKey | None
    """Loading it costs a third of verifying with it."""


def _check(octets: bytes, csr: CertificationRequest | None, issuers: Sequence[_Issuer]) -> None:
    try:
        certificate = x509.load_der_x509_certificate(octets)
        issuer_name, spki = _fields(certificate.tbs_certificate_bytes)
    except _UNREADABLE as exc:
        raise InvariantBroken(
            "the signer's answer is not a certificate", code="answer.unreadable"
        ) from exc
    if csr is not None and spki != csr.spki:
        raise InvariantBroken(
            "the issued certificate is for a different key than the CSR's", code="answer.key"
        )
    if not any(_is_issued_by(certificate, issuer_name, issuer) for issuer in issuers):
        raise InvariantBroken(
            "the issued certificate is not signed by the issuer of the label",
            code="answer.issuer",
        )


def _fields(tbs: bytes) -> tuple[bytes, bytes]:
    """Return issuer and SubjectPublicKeyInfo of a TBSCertificate, encoded (RFC 5280 4.1)."""
    version, *_ = fields = der_codec.children(tbs)
    first = 1 if version[0] == _VERSION else 0
    return fields[first + _ISSUER], fields[first + _SPKI]


def _is_issued_by(certificate: x509.Certificate, issuer_name: bytes, issuer: _Issuer) -> bool:
    scheme = certificate.signature_algorithm_parameters
    try:
        if issuer.key is None or issuer_name != issuer.subject or not isinstance(scheme, ec.ECDSA):
            certificate.verify_directly_issued_by(issuer.certificate)
        else:
            issuer.key.verify(certificate.signature, certificate.tbs_certificate_bytes, scheme)
    except PARSER_ERRORS:
        return False
    return True


@lru_cache(maxsize=64)
def _issuers(cacerts: bytes) -> tuple[_Issuer, ...]:
    return tuple(_issuer(load_certificate(c)) for c in read_certs_only(cacerts))


def _issuer(certificate: x509.Certificate) -> _Issuer:
    key = certificate.public_key()
    return _Issuer(
        certificate,
        certificate.subject.public_bytes(),
        key if isinstance(key, ec.EllipticCurvePublicKey) else None,
    )
