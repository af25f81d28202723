"""Certificate revocation lists (RFC 5280 section 5), written as DER and read back to be sure.

Full lists of version 2, or the parts of one: no deltas, no indirect entries. Nothing here holds
a key.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from estcore.errors import LintFailed
from estcore.pki import der
from estcore.pki.certificate import IssuerCertificate

RevocationReason = Literal[
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
]
"""Reasons for which a subscriber's certificate is revoked for good (RFC 5280 section 5.3.1)."""
REVOCATION_REASONS: tuple[str, ...] = get_args(RevocationReason)
REASON_CODES = {
    "keyCompromise": 1,
    "cACompromise": 2,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "certificateHold": 6,
    "privilegeWithdrawn": 9,
    "aACompromise": 10,
}
"""RFC 5280 section 5.3.1; ``unspecified`` is said by leaving the extension out."""
_ENUMERATED, _EXPLICIT_0 = 0x0A, 0xA0
_CRL_NUMBER, _AKI, _REASON = der.oid("2.5.29.20"), der.oid("2.5.29.35"), der.oid("2.5.29.21")
_DISTRIBUTION_POINT = der.oid("2.5.29.28")
_TRUE = b"\x01\x01\xff"
_ECDSA = {256: "1.2.840.10045.4.3.2", 384: "1.2.840.10045.4.3.3", 521: "1.2.840.10045.4.3.4"}


@dataclass(frozen=True, order=True)
class RevokedEntry:
    """One certificate that is not good any more. An unknown reason is none."""

    serial_number: int
    revoked_at: dt.datetime
    reason: str | None = None


def signature_algorithm(key: CertificateIssuerPublicKeyTypes) -> bytes:
    """Return the AlgorithmIdentifier of what an issuer with this key signs.

    Raises:
        ValueError: no issuer has a key like this.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        return der.tlv(der.SEQUENCE, der.oid(_ECDSA[key.curve.key_size]))
    if isinstance(key, rsa.RSAPublicKey):
        return der.tlv(der.SEQUENCE, der.oid("1.2.840.113549.1.1.11"), der.tlv(der.NULL))
    if isinstance(key, ed25519.Ed25519PublicKey):
        return der.tlv(der.SEQUENCE, der.oid("1.3.101.112"))
    raise ValueError(f"no issuer has a key like {type(key).__name__}")


def build_crl(
    issuer: IssuerCertificate,
    entries: Iterable[RevokedEntry],
    *,
    number: int,
    this_update: dt.datetime,
    next_update: dt.datetime,
    urls: Sequence[str] = (),
) -> bytes:
    """Return the TBSCertList, entries by serial number; times in whole seconds.

    ``urls`` are the distribution points of a list that is not for all certificates of the
    issuer, as those it is for name them (RFC 5280 section 5.2.5).
    """
    listed = b"".join(_entry(one) for one in sorted(entries, key=lambda e: e.serial_number))
    extensions = [
        _extension(_AKI, issuer.key_identifier.public_bytes()),
        _extension(_CRL_NUMBER, der.integer(number)),
    ]
    if urls:
        extensions.append(
            der.tlv(
                der.SEQUENCE,
                _DISTRIBUTION_POINT,
                _TRUE,
                der.tlv(der.OCTET_STRING, _point(urls).public_bytes()),
            )
        )
    return der.tlv(
        der.SEQUENCE,
        der.integer(1),
        signature_algorithm(issuer.public_key),
        issuer.subject_der,
        _time(this_update),
        _time(next_update),
        # RFC 5280 section 5.1.2.6: without revoked certificates the list MUST be absent.
        der.tlv(der.SEQUENCE, listed) if listed else b"",
        der.tlv(_EXPLICIT_0, der.tlv(der.SEQUENCE, *extensions)),
    )


def _point(urls: Sequence[str]) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url) for url in urls],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


def read_crl(octets: bytes) -> tuple[x509.CertificateRevocationList, frozenset[RevokedEntry]]:
    """Return a CRL of ours and its entries. Does not verify the signature.

    Raises:
        ValueError: not a CRL.
    """
    crl = x509.load_der_x509_crl(octets)
    found = set()
    for one in crl:
        try:
            reason = one.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
        except x509.ExtensionNotFound:
            reason = None
        found.add(RevokedEntry(one.serial_number, one.revocation_date_utc, reason))
    return crl, frozenset(found)


def check_crl(
    octets: bytes,
    issuer: IssuerCertificate,
    entries: Iterable[RevokedEntry],
    *,
    number: int,
    next_update: dt.datetime,
    urls: Sequence[str] = (),
) -> None:
    """Read our own CRL back before anybody sees it: what was decided, signed by the issuer.

    Raises:
        LintFailed: it is anything else.
    """
    try:
        crl, found = read_crl(octets)
        said = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        good = (
            crl.is_signature_valid(issuer.public_key)
            and crl.issuer == issuer.subject
            and said == number
            and crl.next_update_utc == next_update
            and found == {_plain(one) for one in entries}
            and _points(crl) == ((_point(urls), True) if urls else None)
        )
    except (ValueError, x509.ExtensionNotFound) as exc:
        raise LintFailed("our own CRL cannot be read back", code="lint.crl") from exc
    if not good:
        raise LintFailed("our own CRL is not what was decided", code="lint.crl")


def _points(
    crl: x509.CertificateRevocationList,
) -> tuple[x509.IssuingDistributionPoint, bool] | None:
    try:
        found = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    except x509.ExtensionNotFound:
        return None
    return found.value, found.critical


def _plain(entry: RevokedEntry) -> RevokedEntry:
    reason = entry.reason if entry.reason in REASON_CODES else None
    moment = entry.revoked_at.replace(microsecond=0)
    return RevokedEntry(entry.serial_number, moment, reason)


def plain_entries(entries: Iterable[RevokedEntry]) -> frozenset[RevokedEntry]:
    """Return the entries as a CRL tells them: whole seconds, known reasons."""
    return frozenset(_plain(one) for one in entries)


def _entry(entry: RevokedEntry) -> bytes:
    code = REASON_CODES.get(entry.reason or "")
    reason = b""
    if code is not None:
        value = _extension(_REASON, der.tlv(_ENUMERATED, bytes((code,))))
        reason = der.tlv(der.SEQUENCE, value)
    return der.tlv(der.SEQUENCE, der.integer(entry.serial_number), _time(entry.revoked_at), reason)


def _extension(oid: bytes, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, oid, der.tlv(der.OCTET_STRING, value))


def _time(moment: dt.datetime) -> bytes:
    # RFC 5280 section 5.1.2.4: UTCTime through 2049, GeneralizedTime from 2050 on.
    if moment.year < 2050:  # noqa: PLR2004
        return der.tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der.tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())
