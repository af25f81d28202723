"""OCSP (RFC 6960): the question read, the answer signed with a responder's own key.

One certificate a request, as RFC 5019 section 2.1.1 has it. A signature of the asker is not
looked at: everybody may ask. The nonce is that of RFC 9654.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estcore.errors import MalformedRequest
from estcore.pki import der
from estcore.pki.certificate import IssuerCertificate
from estcore.pki.crl import REASON_CODES
from estcore.pki.parsers import PARSER_ERRORS, describe

MOST_OCTETS = 4096
"""A request may be so long; one with the longest nonce has less than 400 octets."""
_LONGEST_NONCE = 128


@dataclass(frozen=True)
class OCSPQuery:
    """What is asked about one certificate; the first four fields are its CertID."""

    algorithm: hashes.HashAlgorithm
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial_number: int
    nonce: bytes | None

    @property
    def certificate_id(self) -> tuple[str, bytes, bytes, int]:
        """The CertID, to look an answer up by."""
        return (
            self.algorithm.name,
            self.issuer_name_hash,
            self.issuer_key_hash,
            self.serial_number,
        )


@dataclass(frozen=True)
class CertificateStatus:
    """How a certificate stands: good where it is known and not revoked."""

    known: bool
    revoked_at: dt.datetime | None = None
    reason: str | None = None


def read_question(octets: bytes) -> OCSPQuery:
    """Return what an OCSPRequest asks.

    Raises:
        MalformedRequest: not a request, too long, about more than one certificate, or with a
            nonce that is not of 1 to 128 octets (RFC 9654 section 2.1).
    """
    if len(octets) > MOST_OCTETS:
        raise MalformedRequest("the OCSP request is too long", code="ocsp.malformed")
    try:
        request = ocsp.load_der_ocsp_request(octets)
        nonce = _nonce(request)
        question = OCSPQuery(
            request.hash_algorithm,
            request.issuer_name_hash,
            request.issuer_key_hash,
            request.serial_number,
            nonce,
        )
    except PARSER_ERRORS as exc:
        raise MalformedRequest(
            f"not an OCSP request: {describe(exc)}", code="ocsp.malformed"
        ) from exc
    if nonce is not None and not 1 <= len(nonce) <= _LONGEST_NONCE:
        raise MalformedRequest("a nonce has 1 to 128 octets", code="ocsp.malformed")
    return question


def _nonce(request: ocsp.OCSPRequest) -> bytes | None:
    try:
        return request.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None


def asks_issuer(question: OCSPQuery, issuer: IssuerCertificate) -> bool:
    """Return whether the question is about a certificate of this issuer."""
    _, key_bits = der.children(issuer.spki)
    _, start, end = der.header(key_bits, 0)
    return (question.issuer_name_hash, question.issuer_key_hash) == (
        _digest(question.algorithm, issuer.subject_der),
        _digest(question.algorithm, key_bits[start + 1 : end]),
    )


def _digest(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    hasher = hashes.Hash(algorithm)
    hasher.update(octets)
    return hasher.finalize()


def sign_answer(
    question: OCSPQuery,
    standing: CertificateStatus,
    *,
    responder: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    this_update: dt.datetime,
    next_update: dt.datetime,
) -> bytes:
    """Return the OCSPResponse, signed by the responder, whose certificate is in it."""
    status = ocsp.OCSPCertStatus.GOOD if standing.known else ocsp.OCSPCertStatus.UNKNOWN
    reason = None
    if standing.revoked_at is not None:
        status = ocsp.OCSPCertStatus.REVOKED
        # An unspecified or unknown reason is left out, as in a CRL.
        reason = x509.ReasonFlags(standing.reason) if standing.reason in REASON_CODES else None
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            question.issuer_name_hash,
            question.issuer_key_hash,
            question.serial_number,
            question.algorithm,
            status,
            this_update.replace(microsecond=0),
            next_update.replace(microsecond=0),
            standing.revoked_at and standing.revoked_at.replace(microsecond=0),
            reason,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, responder)
        .certificates([responder])
    )
    if question.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(question.nonce), critical=False)
    return _der(builder.sign(key, hashes.SHA256()))


def _refusal(status: ocsp.OCSPResponseStatus) -> bytes:
    return _der(ocsp.OCSPResponseBuilder.build_unsuccessful(status))


def _der(response: ocsp.OCSPResponse) -> bytes:
    return response.public_bytes(Encoding.DER)


MALFORMED = _refusal(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
TRY_LATER = _refusal(ocsp.OCSPResponseStatus.TRY_LATER)
UNAUTHORIZED = _refusal(ocsp.OCSPResponseStatus.UNAUTHORIZED)


@dataclass(frozen=True)
class OCSPAnswer:
    """A successful response as a relay reads it. Its signature is not verified."""

    octets: bytes
    revoked: bool
    unknown: bool
    nonce: bool
    this_update: dt.datetime
    next_update: dt.datetime


def read_answer(octets: bytes) -> OCSPAnswer | None:
    """Return a successful response; None for any other, which must not be cached."""
    try:
        response = ocsp.load_der_ocsp_response(octets)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return None
        next_update = response.next_update_utc
        if next_update is None:
            return None
        status = response.certificate_status
        return OCSPAnswer(
            octets,
            revoked=status is ocsp.OCSPCertStatus.REVOKED,
            unknown=status is ocsp.OCSPCertStatus.UNKNOWN,
            nonce=any(isinstance(e.value, x509.OCSPNonce) for e in response.extensions),
            this_update=response.this_update_utc,
            next_update=next_update,
        )
    except PARSER_ERRORS:
        return None
