"""Renewal information over EST, shaped like that of ACME (RFC 9773).

``GET <label>/renewal-info/<certificate id>`` answers when a certificate is best renewed:

    {"suggestedWindow": {"start": "2026-11-29T10:00:00Z", "end": "2026-12-01T10:00:00Z"},
     "explanationURL": "https://ca.example/incidents/17",
     "rotationID": "6a0f…", "reason": "lifetime", "managed": "available"}

``rotationID``, ``reason`` and ``managed`` are ours, and optional. ``managed`` says that the server
renews the certificate by itself: ``scheduled``, or ``available`` at ``<label>/renewed/<certificate
id>``. When to ask again is in the Retry-After field
of the answer. Members that a reader does not know are ignored (RFC 9773 section 4.2).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509
from typing_extensions import override

from estcore.errors import MalformedRequest
from estcore.pki.parsers import PARSER_ERRORS, key_identifier_and_serial

ManagedState = Literal["scheduled", "available"]
CONTENT_TYPE = "application/json"
OPERATION = "renewal-info"
_MAX_BODY = 16_384
_MAX_TEXT = 2_048
_KEY_ID = r"[A-Za-z0-9_-]{2,86}"
"""At most 64 octets; a SHA-1 key identifier has 20."""
_SERIAL = r"[A-Za-z0-9_-]{2,28}"
"""At most 20 octets (RFC 5280 section 4.1.2.2), and one more for a sign."""
_CERT_ID = re.compile(rf"({_KEY_ID})\.({_SERIAL})")
_MAX_KEY_ID_OCTETS = 64
_MAX_SERIAL_OCTETS = 21
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class CertificateId:
    """What RFC 9773 names a certificate by: its issuer's key identifier and its serial number."""

    key_id: bytes
    serial_number: int

    @override
    def __str__(self) -> str:
        """Return the form of RFC 9773 section 4.1."""
        return f"{_base64url(self.key_id)}.{_base64url(serial_octets(self.serial_number))}"


def cert_id(certificate: x509.Certificate) -> str:
    """Return the id of a certificate: base64url(AKI keyIdentifier) "." base64url(serial number).

    See RFC 9773 section 4.1. The serial number is the content octets of its INTEGER, so one whose
    first bit is set begins with a zero octet.

    Raises:
        MalformedRequest: the certificate has no keyIdentifier of its issuer, or extensions that
            cannot be read (``renewal_info.no_key_identifier``).
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        key_id = extension.value.key_identifier
    except PARSER_ERRORS as exc:
        raise _no_key_identifier() from exc
    if not key_id:
        raise _no_key_identifier()
    return str(CertificateId(key_id, certificate.serial_number))


def identify(der: bytes) -> CertificateId:
    """Return what a certificate is asked for by: parts that ``parse_cert_id`` accepts.

    Raises:
        MalformedRequest: not one certificate, or one without an id, or with one that is too long.
    """
    key_id, serial = key_identifier_and_serial(der)
    if not 0 < len(key_id) <= _MAX_KEY_ID_OCTETS:
        raise _no_key_identifier()
    if serial < 0 or len(serial_octets(serial)) > _MAX_SERIAL_OCTETS:
        raise _malformed_id()
    return CertificateId(key_id, serial)


def parse_cert_id(text: str) -> CertificateId:
    """Return the parts of a certificate id; one certificate has one spelling only.

    Raises:
        MalformedRequest: it is none (``renewal_info.certificate_id``).
    """
    match = _CERT_ID.fullmatch(text)
    if match is None:
        raise _malformed_id()
    key_id, serial = _octets(match[1]), _octets(match[2])
    number = int.from_bytes(serial, "big", signed=True)
    if len(serial) > _MAX_SERIAL_OCTETS or number < 0 or serial_octets(number) != serial:
        raise _malformed_id()
    return CertificateId(key_id, number)


def serial_octets(serial_number: int) -> bytes:
    """Return the content octets of the DER INTEGER of a serial number that is not negative."""
    return serial_number.to_bytes(serial_number.bit_length() // 8 + 1, "big")


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """When a certificate is best renewed. Times are aware, UTC, in whole seconds.

    ``retry_after_s`` is when to ask again, in seconds; it travels as a header field.
    """

    start: dt.datetime
    end: dt.datetime
    rotation_id: str | None = None
    reason: str | None = None
    explanation_url: str | None = None
    retry_after_s: float | None = None
    managed: ManagedState | None = None

    def __post_init__(self) -> None:
        """Refuse a window that ends before it begins.

        RFC 9773 section 4.2: servers MUST NOT serve such a window, and clients MUST treat one as
        if they had received no answer.

        Raises:
            MalformedRequest: the window does not end after its start (``renewal_info.window``).
        """
        if self.start >= self.end:
            raise MalformedRequest(
                "the suggested window does not end after its start", code="renewal_info.window"
            )

    def encode(self) -> bytes:
        """Return the JSON of the answer, without ``retry_after_s``."""
        answer: dict[str, Any] = {
            "suggestedWindow": {"start": _timestamp(self.start), "end": _timestamp(self.end)}
        }
        members = {
            "explanationURL": self.explanation_url,
            "rotationID": self.rotation_id,
            "reason": self.reason,
            "managed": self.managed,
        }
        answer |= {name: value for name, value in members.items() if value is not None}
        return json.dumps(answer, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, body: bytes, *, retry_after_s: float | None = None) -> RenewalInfo:
        """Return what an answer says.

        Raises:
            MalformedRequest: not such an answer (``renewal_info.malformed``), or its window does
                not end after its start (``renewal_info.window``).
        """
        answer = _object(body)
        window = answer.get("suggestedWindow")
        if not isinstance(window, dict):
            raise _malformed_info("suggestedWindow is missing")
        return cls(
            start=_moment(window.get("start")),
            end=_moment(window.get("end")),
            rotation_id=_text(answer, "rotationID"),
            reason=_text(answer, "reason"),
            explanation_url=_text(answer, "explanationURL"),
            retry_after_s=retry_after_s,
            managed=_managed(answer),
        )


def _managed(answer: dict[str, Any]) -> ManagedState | None:
    """Return what is known of it; a state that a later version adds is none."""
    match _text(answer, "managed"):
        case "scheduled" | "available" as state:
            return state
        case _:
            return None


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > _MAX_BODY:
        raise _malformed_info(f"more than {_MAX_BODY} octets")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _malformed_info("not JSON") from exc
    if not isinstance(answer, dict):
        raise _malformed_info("not a JSON object")
    return answer


def _text(answer: dict[str, Any], name: str) -> str | None:
    value = answer.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise _malformed_info(f"{name} is not a short text")
    return value


def _moment(value: Any) -> dt.datetime:
    """Return an RFC 3339 timestamp in whole seconds, fractions cut off."""
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _malformed_info("a time of the window is not an RFC 3339 timestamp")
    offset = "+00:00" if match[4] in "Zz" else match[4]
    try:
        moment = dt.datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}")
        return moment.astimezone(dt.UTC)
    except (ValueError, OverflowError) as exc:
        raise _malformed_info("a time of the window is not an RFC 3339 timestamp") from exc


def _timestamp(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _octets(text: str) -> bytes:
    try:
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise _malformed_id() from exc
    if _base64url(octets) != text:
        raise _malformed_id()
    return octets


def _no_key_identifier() -> MalformedRequest:
    return MalformedRequest(
        "the certificate has no authority key identifier to name it by",
        code="renewal_info.no_key_identifier",
    )


def _malformed_id() -> MalformedRequest:
    return MalformedRequest(
        "not a certificate id; it is base64url of the authority key identifier, a dot and "
        "base64url of the serial number (RFC 9773 section 4.1)",
        code="renewal_info.certificate_id",
    )


def _malformed_info(problem: str) -> MalformedRequest:
    return MalformedRequest(
        f"the renewal information cannot be read: {problem}", code="renewal_info.malformed"
    )
