"""The parts of a CertificationRequest (RFC 2986 section 4), read one by one from their DER.

Every fault has a sentence of its own, so that the owner of a device can correct it. Accepted
beyond DER is what OpenSSL and Go read and what changes nothing: attributes in another order, and
``critical FALSE`` or ``cA FALSE`` written out. The signature is verified over the octets as sent.

An extension that cannot be read is kept with its reason: whether it matters depends on the
profile. ``estcore.pki.csr`` has the type that is used everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509

from estcore.errors import InvalidCSR, MalformedRequest, RequestRejected
from estcore.pki import der as der_codec
from estcore.pki.attributes import EXTENSION_REQUEST_OID, Attributes, single_value
from estcore.pki.general_names import check_general_names
from estcore.pki.parsers import READING_ERRORS, normal_basic_constraints, parser_errors

MAX_CSR_BYTES = 32_768
MICROSOFT_EXTENSION_REQUEST_OID = "1.3.6.1.4.1.311.2.1.14"
SAN_OID, KEY_USAGE_OID = "2.5.29.17", "2.5.29.15"
EXTENDED_KEY_USAGE_OID, BASIC_CONSTRAINTS_OID = "2.5.29.37", "2.5.29.19"
_READ = (SAN_OID, KEY_USAGE_OID, EXTENDED_KEY_USAGE_OID, BASIC_CONSTRAINTS_OID)
_ATTRIBUTES = 0xA0
_BOOLEANS = (b"\x00", b"\xff")


@dataclass(frozen=True)
class CSRParts:
    """The elements of one CSR as they were sent."""

    info: bytes
    subject: bytes
    spki: bytes
    attributes: bytes
    signature_algorithm: bytes
    signature: bytes


def split_csr(der: bytes) -> CSRParts:
    """Return the parts of the CSR in ``der``. Nothing is looked at inside of them.

    Raises:
        MalformedRequest: too large, not one CertificationRequest, of another version, without
            attributes; with what is wrong.
    """
    if len(der) > MAX_CSR_BYTES:
        raise MalformedRequest(f"CSR is larger than {MAX_CSR_BYTES} bytes", code="csr.too_large")
    try:
        return _split(der)
    except MalformedRequest as exc:
        if exc.code != "der.malformed":
            raise
        raise _malformed(exc.reason) from exc


def _split(der: bytes) -> CSRParts:
    if der[:1] != bytes((der_codec.SEQUENCE,)):
        raise _malformed("it does not begin with a SEQUENCE")
    _, _, end = der_codec.header(der, 0)
    if end != len(der):
        raise MalformedRequest(
            f"the certification request is followed by more octets ({len(der) - end})",
            code="csr.trailing_octets",
        )
    outer = der_codec.children(der)
    if len(outer) != 3:  # noqa: PLR2004 - info, algorithm, signature
        raise _malformed("it is not info, signature algorithm and signature")
    info = der_codec.inside(outer[0], der_codec.SEQUENCE)
    if not info or info[0] != _VERSION_1:
        raise MalformedRequest(
            f"version {_version(info)} is not that of PKCS#10, which is 0", code="csr.version"
        )
    if len(info) < 3:  # noqa: PLR2004 - version, subject, key
        raise _malformed("its info is not version, subject, key and attributes")
    if len(info) == 3:  # noqa: PLR2004 - the same
        raise MalformedRequest(
            "the attributes are missing; RFC 2986 section 4.1 wants an empty [0] where there "
            "are none",
            code="csr.attributes_missing",
        )
    if len(info) > 4 or info[3][0] != _ATTRIBUTES:  # noqa: PLR2004 - the same
        raise _malformed("its info is not version, subject, key and attributes")
    bits = der_codec.content(outer[2], der_codec.BIT_STRING)
    if bits[:1] != b"\x00":
        raise InvalidCSR("the signature is not whole octets", code="csr.signature")
    return CSRParts(outer[0], info[1], info[2], info[3], outer[1], bits[1:])


_VERSION_1 = der_codec.integer(0)


def _version(info: list[bytes]) -> str:
    try:
        return str(der_codec.integer_value(info[0]))
    except (MalformedRequest, IndexError):
        return "unreadable"


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(f"not a PKCS#10 certification request: {reason}", code="csr.malformed")


@dataclass(frozen=True)
class RequestedExtension:
    """One extension asked for; ``error`` says why it cannot be read, where it cannot."""

    oid: str
    critical: bool
    value: bytes
    error: RequestRejected | None = None

    @property
    def encoded(self) -> bytes:
        """The Extension element; criticality is the profile's to say and is left out."""
        octets = der_codec.tlv(der_codec.OCTET_STRING, self.value)
        return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(self.oid), octets)


def extension_request(attributes: Attributes) -> bytes | None:
    """Return the Extensions element asked for, as it was sent; None without a request.

    Both kinds of extension request are read, PKCS#9's and Microsoft's; both at once must be equal.

    Raises:
        InvalidCSR: two requests that differ (``csr.extension_requests_differ``).
    """
    own = single_value(attributes, EXTENSION_REQUEST_OID)
    microsoft = single_value(attributes, MICROSOFT_EXTENSION_REQUEST_OID)
    if own is not None and microsoft is not None and own != microsoft:
        raise InvalidCSR(
            "the CSR has an extension request of PKCS#9 and another one of Microsoft "
            f"({MICROSOFT_EXTENSION_REQUEST_OID}); send one",
            code="csr.extension_requests_differ",
        )
    return own if own is not None else microsoft


def requested_extensions(attributes: Attributes) -> tuple[RequestedExtension, ...]:
    """Return the extensions that the attributes ask for, in their order.

    Raises:
        InvalidCSR: two requests that differ.
        MalformedRequest: an extension that does not say which one it is.
    """
    request = extension_request(attributes)
    if request is None:
        return ()
    try:
        found = [_extension(e) for e in der_codec.inside(request, der_codec.SEQUENCE)]
    except MalformedRequest as exc:
        raise MalformedRequest(
            f"the extension request cannot be read: {exc.reason}", code="csr.extension_malformed"
        ) from exc
    oids = [extension.oid for extension in found]
    return tuple(
        _unreadable(e.oid, "it stands twice", "csr.extension_repeated")
        if oids.count(e.oid) > 1
        else e
        for e in found
    )


def _extension(element: bytes) -> RequestedExtension:
    parts = der_codec.inside(element, der_codec.SEQUENCE)
    if not parts:
        raise MalformedRequest("an element is not an Extension")
    oid = der_codec.oid_text(parts[0])
    if not 2 <= len(parts) <= 3:  # noqa: PLR2004 - identifier, criticality, value
        return _unreadable(oid, "it is not an Extension")
    try:
        flag = der_codec.content(parts[1], der_codec.BOOLEAN) if len(parts) > 2 else b"\x00"  # noqa: PLR2004 - the same
        octets = der_codec.content(parts[-1], der_codec.OCTET_STRING)
        if flag not in _BOOLEANS:
            raise MalformedRequest("its criticality is not a BOOLEAN")
        if oid == BASIC_CONSTRAINTS_OID:
            octets = normal_basic_constraints(octets)
    except MalformedRequest as exc:
        return _unreadable(oid, exc.reason)
    return RequestedExtension(oid, flag != b"\x00", octets)


def _unreadable(oid: str, reason: str, code: str = "csr.extension_malformed") -> RequestedExtension:
    error = MalformedRequest(f"extension {oid}: {reason}", code=code)
    return RequestedExtension(oid, critical=False, value=b"", error=error)


@dataclass(frozen=True)
class ReadExtensions:
    """The extensions that a profile may take from a request, and why others cannot be read."""

    values: tuple[x509.ExtensionType, ...]
    other_oids: tuple[str, ...]
    errors: Mapping[str, RequestRejected]


def load_for_reading(
    parts: CSRParts, extensions: Sequence[RequestedExtension]
) -> x509.CertificateSigningRequest:
    """Return subject, key, algorithm and readable extensions as an object of the library.

    Its signature is nothing, and its other attributes are left out: it is for reading.

    Raises:
        ValueError: or another of ``PARSER_ERRORS``.
    """
    wanted = [e for e in extensions if _is_read(e)]
    return _load(parts.subject, parts.spki, parts.signature_algorithm, wanted)


def read_extensions(
    loaded: x509.CertificateSigningRequest, extensions: Sequence[RequestedExtension]
) -> ReadExtensions:
    """Return the values of extensions that a profile may grant; of the others the name only.

    ``loaded`` is what ``load_for_reading`` made of the same extensions.
    """
    errors = {e.oid: e.error for e in extensions if e.error is not None}
    wanted = [e for e in extensions if _is_read(e)]
    values: list[x509.ExtensionType] = []
    try:
        for extension in wanted:
            _check_names(extension)
        values = [e.value for e in loaded.extensions]
    except READING_ERRORS:
        # One of them: which, and are the others good?
        for extension in wanted:
            try:
                values.append(_value(extension))
            except RequestRejected as exc:
                errors[extension.oid] = exc
    others = tuple(dict.fromkeys(e.oid for e in extensions if e.oid not in _READ))
    return ReadExtensions(tuple(values), others, errors)


def _is_read(extension: RequestedExtension) -> bool:
    return extension.oid in _READ and extension.error is None


def _check_names(extension: RequestedExtension) -> None:
    if extension.oid == SAN_OID:
        check_general_names(extension.value)


def _value(extension: RequestedExtension) -> x509.ExtensionType:
    _check_names(extension)
    with parser_errors(f"extension {extension.oid}", code="csr.extension_malformed"):
        loaded = _load(_NO_NAME, _ANY_KEY, _ANY_ALGORITHM, [extension])
        value: x509.ExtensionType = loaded.extensions[0].value
        return value


def _load(
    subject: bytes, spki: bytes, algorithm: bytes, extensions: Sequence[RequestedExtension]
) -> x509.CertificateSigningRequest:
    attributes = b""
    if extensions:
        members = der_codec.tlv(der_codec.SEQUENCE, *(e.encoded for e in extensions))
        attributes = der_codec.tlv(
            der_codec.SEQUENCE, _EXTENSION_REQUEST, der_codec.tlv(der_codec.SET, members)
        )
    info = der_codec.tlv(
        der_codec.SEQUENCE, _VERSION_1, subject, spki, der_codec.tlv(_ATTRIBUTES, attributes)
    )
    return x509.load_der_x509_csr(der_codec.tlv(der_codec.SEQUENCE, info, algorithm, _NO_SIGNATURE))


_EXTENSION_REQUEST = der_codec.oid(EXTENSION_REQUEST_OID)
_NO_NAME = der_codec.tlv(der_codec.SEQUENCE)
_NO_SIGNATURE = der_codec.tlv(der_codec.BIT_STRING, b"\x00")
_ANY_ALGORITHM = der_codec.tlv(der_codec.SEQUENCE, der_codec.oid("1.3.101.112"))
_ANY_KEY = der_codec.tlv(
    der_codec.SEQUENCE, _ANY_ALGORITHM, der_codec.tlv(der_codec.BIT_STRING, bytes(33))
)
