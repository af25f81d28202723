"""Boundary to the parsers of ``cryptography``: whatever they raise becomes one error of ours.

X.509, OCSP, CRL and CMS of other makers enter here. A parser that raises something new is a
refused request, never an internal error; a property test mutates real encodings to hold that.

``load_certificate`` also reads certificates whose maker wrote a name or a default value in a way
that DER forbids (an unsorted SET in an RDN, ``critical FALSE``). OpenSSL and Go accept those, and
their owners cannot write them again: their signature is over the octets as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm

from estcore.errors import ESTSuiteError, MalformedRequest
from estcore.pki import der as der_codec
from estcore.pki.pem import pem_blocks

PARSER_ERRORS: tuple[type[Exception], ...] = (
    ValueError,  # also UnicodeError
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    InternalError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that a parser of ``cryptography`` is known to raise, at loading or at reading a field."""

READING_ERRORS: tuple[type[Exception], ...] = (ESTSuiteError, *PARSER_ERRORS)
"""The same and our own: where reading goes on with something else."""
_EXPLICIT_0, _EXPLICIT_3 = 0xA0, 0xA3
_CERTIFICATE_LABELS = ("CERTIFICATE", "X509 CERTIFICATE")
_IDENTITY_EXTENSIONS = frozenset(
    {
        "2.5.29.14",  # subjectKeyIdentifier
        "2.5.29.15",  # keyUsage
        "2.5.29.17",  # subjectAltName
        "2.5.29.19",  # basicConstraints
        "2.5.29.30",  # nameConstraints
        "2.5.29.35",  # authorityKeyIdentifier
        "2.5.29.37",  # extKeyUsage
    }
)
"""What a service reads in a certificate of a different CA; the rest may be unreadable."""

_KIND = re.compile(r"kind: (\w+)")
_KINDS = {
    "EncodedDefault": "DEFAULT value encoded",
    "InvalidSetOrdering": "SET OF is not sorted",
    "ExtraData": "octets follow its end",
    "ShortData": "it is truncated",
    "InvalidSize": "it has too few or too many elements",
    "InvalidLength": "a length is not minimal",
    "InvalidTag": "a tag is invalid",
    "UnexpectedTag": "it is of another ASN.1 type",
    "InvalidValue": "a value is not allowed by its ASN.1 type",
    "IntegerOverflow": "a number is too large",
    "OidTooLong": "an object identifier is too long",
    "UnknownDefinedBy": "an object identifier is not known",
}


def describe(error: Exception) -> str:
    """Return what a parser found, as one clause without the octets that it read."""
    found = _KIND.search(str(error))
    if found is not None and isinstance(error, ValueError):
        return _KINDS.get(found[1], "it is not DER of its type")
    if isinstance(error, x509.UnsupportedGeneralNameType):
        return "it has a name of a kind that is not supported"
    if isinstance(error, UnsupportedAlgorithm):
        return "an algorithm in it is not supported"
    return "a value in it cannot be read"


@contextmanager
def parser_errors(
    subject: str, *, code: str, error: type[ESTSuiteError] = MalformedRequest
) -> Iterator[None]:
    """Turn whatever a parser raises into ``error``: ``<subject>: <what was found>``.

    Errors of the suite pass unchanged.

    Raises:
        ESTSuiteError: of the class ``error``, with ``code``.
    """
    try:
        yield
    except PARSER_ERRORS as exc:
        raise error(f"{subject}: {describe(exc)}", code=code) from exc


def load_certificate(der: bytes) -> x509.Certificate:
    """Return one certificate to read; every field of it was read once.

    Where the strict reader refuses, the object is made from a corrected encoding (SETs sorted,
    FALSE defaults left out, only the extensions that say whose certificate it is and for what):
    good for reading, not for its octets, fingerprint or signature. ``der`` stays what counts.

    Raises:
        MalformedRequest: not one certificate, with what was found.
    """
    try:
        return _loaded(der)
    except PARSER_ERRORS as strict:
        try:
            return _loaded(_corrected(der))
        except READING_ERRORS:
            raise MalformedRequest(
                f"the certificate cannot be read: {describe(strict)}", code="parse.certificate"
            ) from strict


def key_identifier_and_serial(der: bytes) -> tuple[bytes, int]:
    """Return the authority key identifier of a certificate, empty without one, and its serial.

    Reads a certificate of the suite's own CAs in a quarter of the time of ``load_certificate``,
    which it uses where the strict reader refuses.

    Raises:
        MalformedRequest: not one certificate (``parse.certificate``).
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        return _key_identifier(certificate), certificate.serial_number
    except PARSER_ERRORS:
        certificate = load_certificate(der)
        return _key_identifier(certificate), certificate.serial_number


def _key_identifier(certificate: x509.Certificate) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return b""
    return found.value.key_identifier or b""


def load_pem_certificates(pem: bytes) -> list[bytes]:
    """Return the certificates (DER) in a PEM text, in its order; other blocks are left out.

    Raises:
        MalformedRequest: ``pem.no_certificate``, without one; ``parse.certificate``, one that
            cannot be read, with its place.
    """
    blocks = [b for b in pem_blocks(pem) if b.label in _CERTIFICATE_LABELS]
    if not blocks:
        raise MalformedRequest("there is no certificate in PEM", code="pem.no_certificate")
    for place, block in enumerate(blocks, 1):
        try:
            load_certificate(block.der)
        except MalformedRequest as exc:
            raise MalformedRequest(f"certificate {place}: {exc.reason}", code=exc.code) from exc
    return [block.der for block in blocks]


def _loaded(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    # The library reads these only when they are asked for; a caller need not expect an error.
    certificate.public_key()
    _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.version)
    return certificate


def _corrected(der: bytes) -> bytes:
    """Return the encoding that ``load_certificate`` reads in place of one that is not DER."""
    tbs, algorithm, signature = der_codec.inside(der, der_codec.SEQUENCE)
    fields = der_codec.inside(tbs, der_codec.SEQUENCE)
    offset = 1 if fields[0][0] == _EXPLICIT_0 else 0
    for place in (offset + 2, offset + 4):  # issuer and subject
        fields[place] = sorted_name(fields[place])
    if fields[-1][0] == _EXPLICIT_3:
        (sequence,) = der_codec.children(fields[-1])
        extensions = der_codec.inside(sequence, der_codec.SEQUENCE)
        kept = [_normal_extension(e) for e in extensions if _of_identity(e)]
        fields[-1:] = [der_codec.tlv(_EXPLICIT_3, der_codec.tlv(der_codec.SEQUENCE, *kept))]
        if not kept:
            fields.pop()
    body = der_codec.tlv(der_codec.SEQUENCE, *fields)
    return der_codec.tlv(der_codec.SEQUENCE, body, algorithm, signature)


def _of_identity(extension: bytes) -> bool:
    oid = der_codec.inside(extension, der_codec.SEQUENCE)[0]
    return der_codec.oid_text(oid) in _IDENTITY_EXTENSIONS


def sorted_name(name: bytes) -> bytes:
    """Return a Name whose RDNs are in the order DER gives a SET OF.

    Raises:
        MalformedRequest: not a sequence of sets.
    """
    rdns = [der_codec.inside(rdn, der_codec.SET) for rdn in der_codec.children(name)]
    return der_codec.tlv(
        der_codec.SEQUENCE, *(der_codec.tlv(der_codec.SET, *sorted(rdn)) for rdn in rdns)
    )


def _normal_extension(extension: bytes) -> bytes:
    """Return an Extension without ``critical FALSE`` and ``cA FALSE``, which DER leaves out."""
    oid, *critical, value = der_codec.inside(extension, der_codec.SEQUENCE)
    if critical == [_FALSE]:
        critical = []
    if oid == _BASIC_CONSTRAINTS:
        octets = der_codec.content(value, der_codec.OCTET_STRING)
        value = der_codec.tlv(der_codec.OCTET_STRING, normal_basic_constraints(octets))
    return der_codec.tlv(der_codec.SEQUENCE, oid, *critical, value)


def normal_basic_constraints(octets: bytes) -> bytes:
    """Return the value of BasicConstraints without ``cA FALSE``, which DER leaves out.

    Raises:
        MalformedRequest: not a SEQUENCE.
    """
    parts = der_codec.inside(octets, der_codec.SEQUENCE)
    return der_codec.tlv(der_codec.SEQUENCE, *(parts[1:] if parts[:1] == [_FALSE] else parts))


_FALSE = der_codec.tlv(der_codec.BOOLEAN, b"\x00")
_BASIC_CONSTRAINTS = der_codec.oid("2.5.29.19")
