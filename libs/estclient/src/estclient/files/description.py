"""What a file with certificates, requests or lists holds, as names and values for people (pure)."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from estclient.est.trust_anchors import UNREADABLE, is_root
from estcore.errors import MalformedRequest
from estcore.est.certs_only import read_certs_only
from estcore.est.renewal_info import cert_id
from estcore.ids import serial_hex
from estcore.pki.keys import key_algorithm
from estcore.pki.names import display_name, san_entries
from estcore.pki.parsers import READING_ERRORS

_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s*([A-Za-z0-9+/=\s]+?)-----END \1-----", re.ASCII
)
_MAX_OCTETS = 16 * 1024 * 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNREADABLE = "not readable"


@dataclass(frozen=True)
class Item:
    """One object of a file; ``fields`` in the order to show them."""

    kind: str
    fields: tuple[tuple[str, str], ...]
    certificate: x509.Certificate | None = None


def describe(octets: bytes, now: dt.datetime) -> list[Item]:
    """Return what is in a file: PEM, DER, or the base64 that EST sends.

    Raises:
        MalformedRequest: nothing that is known, or too much (``inspect.unknown``).
    """
    if len(octets) > _MAX_OCTETS:
        raise MalformedRequest("more than 16 MiB", code="inspect.unknown")
    items = [item for kind, der in _objects(octets) for item in _read(kind, der, now)]
    if not items:
        raise MalformedRequest(
            "no certificate, request, list or PKCS #7 in it", code="inspect.unknown"
        )
    return items


def relative(moment: dt.datetime, now: dt.datetime) -> str:
    """Return how far a moment is from now: ``in 29 days``, ``3 hours ago``."""
    seconds = (moment - now).total_seconds()
    size = abs(seconds)
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute"), (1, "second")):
        count = int(size // unit)
        # 36 hours, not one day: half of it matters.
        if count >= (2 if unit > 1 else 0):
            text = f"{count} {name}{'' if count == 1 else 's'}"
            return f"in {text}" if seconds >= 0 else f"{text} ago"
    return "now"


def _objects(octets: bytes) -> Iterator[tuple[str, bytes]]:
    found = False
    for match in _PEM.finditer(octets):
        found = True
        yield match[1].decode("ascii"), _base64(match[2])
    if found:
        return
    der = octets if octets[:1] == b"\x30" else _base64(octets)
    for kind in ("CERTIFICATE", "CERTIFICATE REQUEST", "PKCS7", "X509 CRL"):
        if _loads(kind, der):
            yield kind, der
            return


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _loads(kind: str, der: bytes) -> bool:
    try:
        _LOADERS[kind](der)
    except UNREADABLE:
        return False
    return True


def _read(kind: str, der: bytes, now: dt.datetime) -> Iterator[Item]:
    """Yield one item, several of a PKCS #7; what cannot be read is an item that says so."""
    name = {"NEW CERTIFICATE REQUEST": "CERTIFICATE REQUEST", "X509 CERTIFICATE": "CERTIFICATE"}
    kind = name.get(kind, kind)
    if kind.endswith("PRIVATE KEY"):
        yield Item("private key", (("note", "not shown"),))
        return
    loader = _LOADERS.get(kind)
    if loader is None:
        return
    try:
        loaded = loader(der)
    except UNREADABLE as exc:
        yield Item(kind.lower(), (("error", f"{_UNREADABLE}: {exc}"),))
        return
    match loaded:
        case x509.Certificate():
            yield _certificate(loaded, now)
        case x509.CertificateSigningRequest():
            yield _request(loaded)
        case x509.CertificateRevocationList():
            yield _revocation_list(loaded, now)
        case list():
            yield from (_certificate(certificate, now) for certificate in loaded)
        case _:
            pass


def _certificate(certificate: x509.Certificate, now: dt.datetime) -> Item:
    fields = [
        ("subject", _field(lambda: display_name(certificate.subject))),
        ("names", _field(lambda: _names(certificate.extensions))),
        ("issuer", _field(lambda: display_name(certificate.issuer))),
        ("serial", _field(lambda: serial_hex(certificate.serial_number))),
        ("valid from", _field(lambda: _moment(certificate.not_valid_before_utc, now))),
        ("valid until", _field(lambda: _validity(certificate, now))),
        ("key", _field(lambda: key_algorithm(certificate.public_key()))),
        ("usage", _field(lambda: _usage(certificate.extensions))),
        ("CA", _field(lambda: _ca(certificate))),
        ("SHA-256", sha256(certificate.public_bytes(Encoding.DER)).hexdigest()),
        ("renewal id", _renewal_id(certificate)),
    ]
    shown = tuple((name, value) for name, value in fields if value)
    return Item("certificate", shown, certificate)


def _request(request: x509.CertificateSigningRequest) -> Item:
    fields = [
        ("subject", _field(lambda: display_name(request.subject))),
        ("names", _field(lambda: _names(request.extensions))),
        ("key", _field(lambda: key_algorithm(request.public_key()))),
        ("signature", _field(lambda: "good" if request.is_signature_valid else "WRONG")),
    ]
    return Item("certificate request", tuple((n, v) for n, v in fields if v))


def _revocation_list(crl: x509.CertificateRevocationList, now: dt.datetime) -> Item:
    fields = [
        ("issuer", _field(lambda: display_name(crl.issuer))),
        ("issued", _field(lambda: _moment(crl.last_update_utc, now))),
        ("next", _field(lambda: _moment(crl.next_update_utc, now) if crl.next_update_utc else "")),
        ("entries", _field(lambda: str(len(crl)))),
    ]
    return Item("certificate revocation list", tuple((n, v) for n, v in fields if v))


def _field(read: Callable[[], str]) -> str:
    """Return a value, or that it cannot be read: one field never hides the others."""
    try:
        return read()
    except READING_ERRORS as exc:
        return f"{_UNREADABLE}: {exc}"


def _moment(moment: dt.datetime, now: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({relative(moment, now)})"


def _validity(certificate: x509.Certificate, now: dt.datetime) -> str:
    text = _moment(certificate.not_valid_after_utc, now)
    if certificate.not_valid_after_utc <= now:
        return f"{text} EXPIRED"
    return f"{text} NOT YET VALID" if certificate.not_valid_before_utc > now else text


def _names(extensions: x509.Extensions) -> str:
    try:
        value = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return ", ".join(san_entries(value))


def _usage(extensions: x509.Extensions) -> str:
    try:
        value = extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    except x509.ExtensionNotFound:
        return ""
    assert isinstance(value, x509.ExtendedKeyUsage)  # noqa: S101 - by the OID above
    return ", ".join(oid._name for oid in value)  # noqa: SLF001 - its only name


def _ca(certificate: x509.Certificate) -> str:
    try:
        value = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return ""
    if not value.ca:
        return ""
    return "root" if is_root(certificate) else "intermediate"


def _renewal_id(certificate: x509.Certificate) -> str:
    try:
        return cert_id(certificate)
    except MalformedRequest:
        return ""


def _certificates(der: bytes) -> list[x509.Certificate]:
    """Return the certificates of a certs-only message.

    Raises:
        ValueError: it is none, or one of them cannot be read.
    """
    try:
        return [x509.load_der_x509_certificate(c) for c in read_certs_only(der)]
    except MalformedRequest as exc:
        raise ValueError(exc.reason) from exc


_LOADERS: dict[str, Callable[[bytes], object]] = {
    "CERTIFICATE": x509.load_der_x509_certificate,
    "CERTIFICATE REQUEST": x509.load_der_x509_csr,
    "X509 CRL": x509.load_der_x509_crl,
    "PKCS7": _certificates,
}
