"""Certificate revocation lists (RFC 5280 section 5): build the TBS, check the signed list.

Full CRLs of version 2, or the shards of one: no deltas, no indirect entries. The TBS comes from
the library's builder, signed by a throw-away key as lint copies are; nothing here holds an
issuer's key.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cryptography import x509

from estcore.errors import LintFailed
from estcore.pki import der
from estcore.pki.certificate import IssuerCertificate, signing_hash, throw_away_key_like
from estcore.pki.parsers import READING_ERRORS, parser_errors

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
_REASONS = {name: x509.CRLReason(x509.ReasonFlags(name)) for name in REASON_CODES}


@dataclass(frozen=True, order=True)
class RevokedEntry:
    """One certificate that is not good any more. An unknown reason is none."""

    serial_number: int
    revoked_at: dt.datetime
    reason: str | None = None


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

    ``urls`` are the distribution points of a CRL that does not cover all certificates of the
    issuer, as those it covers name them (RFC 5280 section 5.2.5).
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(issuer.key_identifier, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    if urls:
        builder = builder.add_extension(_point(urls), critical=True)
    for entry in sorted(entries, key=lambda e: e.serial_number):
        builder = builder.add_revoked_certificate(_revoked(entry))
    key = throw_away_key_like(issuer.public_key)
    return builder.sign(key, signing_hash(issuer.public_key)).tbs_certlist_bytes


def crl_signature_algorithm(tbs: bytes) -> bytes:
    """Return the AlgorithmIdentifier inside a TBSCertList, which the outer one must equal."""
    return der.children(tbs)[1]


def _revoked(entry: RevokedEntry) -> x509.RevokedCertificate:
    revoked = (
        x509.RevokedCertificateBuilder()
        .serial_number(entry.serial_number)
        .revocation_date(entry.revoked_at)
    )
    reason = _REASONS.get(entry.reason or "")
    return (revoked if reason is None else revoked.add_extension(reason, critical=False)).build()


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
        MalformedRequest: not a CRL, or one with an entry that cannot be read.
    """
    with parser_errors("not a CRL", code="crl.malformed"):
        crl = x509.load_der_x509_crl(octets)
        return crl, frozenset(_entry(entry) for entry in crl)


def _entry(entry: x509.RevokedCertificate) -> RevokedEntry:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        reason = None
    return RevokedEntry(entry.serial_number, entry.revocation_date_utc, reason)


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
        crl, read_back = read_crl(octets)
        crl_number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        good = (
            crl.is_signature_valid(issuer.public_key)
            and crl.issuer == issuer.subject
            and crl_number == number
            and crl.next_update_utc == next_update
            and read_back == {_plain(entry) for entry in entries}
            and _points(crl) == ((_point(urls), True) if urls else None)
        )
    except READING_ERRORS as exc:
        raise LintFailed("our own CRL cannot be read back", code="lint.crl") from exc
    if not good:
        raise LintFailed("our own CRL is not what was decided", code="lint.crl")


def _points(
    crl: x509.CertificateRevocationList,
) -> tuple[x509.IssuingDistributionPoint, bool] | None:
    try:
        extension = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    except x509.ExtensionNotFound:
        return None
    return extension.value, extension.critical


def _plain(entry: RevokedEntry) -> RevokedEntry:
    reason = entry.reason if entry.reason in REASON_CODES else None
    moment = entry.revoked_at.replace(microsecond=0)
    return RevokedEntry(entry.serial_number, moment, reason)


def plain_entries(entries: Iterable[RevokedEntry]) -> frozenset[RevokedEntry]:
    """Return the entries as a CRL encodes them: whole seconds, known reasons."""
    return frozenset(_plain(entry) for entry in entries)
