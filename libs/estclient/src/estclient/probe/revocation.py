"""Revocation status of a certificate as a relying party sees it: OCSP (RFC 6960), CRL (RFC 5280).

The URLs are those in the certificate. Answers are verified: signature of the issuer or of a
responder that it certified for OCSP (RFC 6960 section 4.2.2.2), that they are of now, and that
they are about this certificate. Not checked: the revocation of the responder's certificate, and
critical extensions of a CRL other than the distribution point.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from estclient.est.response_body import read_limited
from estclient.est.trust_anchors import is_issued_by, is_valid
from estclient.probe.report import StepFailed
from estcore.pki.parsers import PARSER_ERRORS, describe

_MAX_OCSP, _MAX_CRL = 1 << 16, 64 << 20
_NONCE_OCTETS = 32
_SKEW = dt.timedelta(minutes=5)


def ocsp_url(certificate: x509.Certificate) -> str | None:
    """Return the first HTTP URL of an OCSP responder in a certificate."""
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    except x509.ExtensionNotFound:
        return None
    wanted = AuthorityInformationAccessOID.OCSP
    places = [d.access_location for d in access.value if d.access_method == wanted]
    return _http(places)


def crl_url(certificate: x509.Certificate) -> str | None:
    """Return the first HTTP URL of a CRL in a certificate."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except x509.ExtensionNotFound:
        return None
    return _http([name for point in points.value for name in point.full_name or ()])


def _http(names: Sequence[x509.GeneralName]) -> str | None:
    urls = [n.value for n in names if isinstance(n, x509.UniformResourceIdentifier)]
    return next((u for u in urls if u.lower().startswith(("http://", "https://"))), None)


async def fetch(url: str, body: bytes | None, limit: int) -> bytes:
    """Return the body of a GET, or of the POST of an OCSP request; the caller sets a deadline.

    Raises:
        StepFailed: a status other than 200 (``probe.http_status``).
        aiohttp.ClientError: no answer.
    """
    headers = {"Content-Type": "application/ocsp-request"} if body is not None else {}
    method = "GET" if body is None else "POST"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        octets = await read_limited(answer, limit)
        if answer.status != 200:  # noqa: PLR2004
            raise StepFailed(f"{url} answers {answer.status}", code="probe.http_status")
        return octets


async def check_ocsp(
    url: str, certificate: x509.Certificate, issuer: x509.Certificate, *, now: dt.datetime
) -> str:
    """Ask a responder about a certificate; returns until when its answer *good* counts.

    Raises:
        StepFailed: unavailable (``probe.ocsp_status``), an answer that must not be relied on
            (``probe.ocsp_invalid``), or not good (``probe.ocsp_not_good``).
    """
    nonce = os.urandom(_NONCE_OCTETS)
    request = (
        ocsp.OCSPRequestBuilder()
        .add_certificate(certificate, issuer, SHA256())
        .add_extension(x509.OCSPNonce(nonce), critical=False)
        .build()
    )
    octets = await fetch(url, request.public_bytes(Encoding.DER), _MAX_OCSP)
    try:
        return read_ocsp(octets, certificate, issuer, nonce=nonce, now=now)
    except PARSER_ERRORS as exc:
        raise _invalid_ocsp(f"cannot be read: {describe(exc)}") from exc


def read_ocsp(
    octets: bytes,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    nonce: bytes,
    now: dt.datetime,
) -> str:
    """Verify an OCSP response; returns until when it counts. A response need not have the nonce.

    Raises:
        StepFailed: as ``check_ocsp``.
        PARSER_ERRORS: a field that cannot be read.
    """
    response = ocsp.load_der_ocsp_response(octets)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        status = response.response_status.name.lower()
        raise StepFailed(f"the responder answers {status}", code="probe.ocsp_status")
    if response.serial_number != certificate.serial_number:
        raise _invalid_ocsp("is about another certificate")
    nonces = [e.value.nonce for e in response.extensions if isinstance(e.value, x509.OCSPNonce)]
    if nonces and nonces != [nonce]:
        raise _invalid_ocsp("has another nonce")
    signer = _responder(response, issuer, now)
    algorithm = response.signature_hash_algorithm
    if not _is_signed(signer, response.signature, response.tbs_response_bytes, algorithm):
        raise _invalid_ocsp("has a wrong signature")
    end = response.next_update_utc
    if response.this_update_utc > now + _SKEW or (end is not None and end <= now):
        raise _invalid_ocsp("is not of now")
    if response.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        status = response.certificate_status.name.lower()
        raise StepFailed(f"the responder says {status}", code="probe.ocsp_not_good")
    return f"good, {end.isoformat()}" if end is not None else "good"


def _responder(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, now: dt.datetime
) -> x509.Certificate:
    for candidate in response.certificates:
        if candidate == issuer or not is_issued_by(candidate, issuer):
            continue
        usage = candidate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.OCSP_SIGNING in usage and is_valid(candidate, now):
            return candidate
        raise _invalid_ocsp("is of a responder whose certificate is not for OCSP, or has expired")
    return issuer


async def check_crl(
    url: str, certificate: x509.Certificate, issuer: x509.Certificate, *, now: dt.datetime
) -> str:
    """Fetch a CRL that must not list the certificate; returns the number of its entries.

    Raises:
        StepFailed: a CRL that must not be relied on (``probe.crl_invalid``), or one that lists
            the certificate (``probe.crl_listed``).
    """
    octets = await fetch(url, None, _MAX_CRL)
    try:
        return read_crl(octets, url, certificate, issuer, now=now)
    except PARSER_ERRORS as exc:
        raise _invalid_crl(f"cannot be read: {describe(exc)}") from exc


def read_crl(
    octets: bytes,
    url: str,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    now: dt.datetime,
) -> str:
    """Verify a CRL, DER or PEM; returns the number of its entries.

    Raises:
        StepFailed: as ``check_crl``.
        PARSER_ERRORS: a field that cannot be read.
    """
    is_pem = octets.lstrip().startswith(b"-----BEGIN")
    crl = x509.load_pem_x509_crl(octets) if is_pem else x509.load_der_x509_crl(octets)
    if crl.issuer != issuer.subject:
        raise _invalid_crl("is of another issuer")
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise _invalid_crl("is of an issuer with an unknown kind of key")
    if not crl.is_signature_valid(key):
        raise _invalid_crl("has a wrong signature")
    end = crl.next_update_utc
    if crl.last_update_utc > now + _SKEW or (end is not None and end <= now):
        raise _invalid_crl("is not of now")
    for extension in crl.extensions:
        point = extension.value
        if isinstance(point, x509.IssuingDistributionPoint) and point.full_name:
            names = [name.value for name in point.full_name]
            if url not in names:
                raise _invalid_crl("is for another distribution point")
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise StepFailed("the CRL lists the certificate", code="probe.crl_listed")
    return f"{len(crl)} entries"


def _is_signed(
    signer: x509.Certificate, signature: bytes, octets: bytes, algorithm: HashAlgorithm | None
) -> bool:
    key = signer.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, octets, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            key.verify(signature, octets, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, octets)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _invalid_ocsp(what: str) -> StepFailed:
    return StepFailed(f"the OCSP response {what}", code="probe.ocsp_invalid")


def _invalid_crl(what: str) -> StepFailed:
    return StepFailed(f"the CRL {what}", code="probe.crl_invalid")
