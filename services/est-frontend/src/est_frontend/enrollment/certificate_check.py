"""Check of an issued certificate before it is handed out (pure).

The signer has linted and verified what it signed. This is the second look, where the certificate
leaves the suite: a wrong one, beside a generated key above all, must not reach a client.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from cryptography import x509

from estcore.errors import InvariantBroken, IssuerUnavailable
from estcore.est.certs_only import read_certs_only
from estcore.pki.csr import CertificationRequest
from estcore.pki.keys import spki_der
from estcore.pki.parsers import PARSER_ERRORS, load_certificate
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


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
        log.error(
            "issued certificate not handed out",
            extra=fields(correlation_id=correlation_id, code=exc.code, reason=exc.reason),
        )
        raise


def _check(octets: bytes, csr: CertificationRequest, issuers: Sequence[x509.Certificate]) -> None:
    try:
        certificate = x509.load_der_x509_certificate(octets)
        spki = spki_der(certificate.public_key())
    except PARSER_ERRORS as exc:
        raise InvariantBroken(
            "the signer's answer is not a certificate", code="answer.unreadable"
        ) from exc
    if spki != csr.spki:
        raise InvariantBroken(
            "the issued certificate is for a different key than the CSR's", code="answer.key"
        )
    if not any(_is_issued_by(certificate, issuer) for issuer in issuers):
        raise InvariantBroken(
            "the issued certificate is not signed by the issuer of the label",
            code="answer.issuer",
        )


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except PARSER_ERRORS:
        return False
    return True


@lru_cache(maxsize=64)
def _issuers(cacerts: bytes) -> tuple[x509.Certificate, ...]:
    return tuple(load_certificate(c) for c in read_certs_only(cacerts))
